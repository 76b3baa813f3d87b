"""Lets the tests of this room share its conformance suite and what that runs over."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.mounts.mount import unmount_all
from orlop.mounts.temporary import TemporaryMounts
from orlop.snapshots import probe

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("conformance")


@pytest.fixture(autouse=True)
def _kernel(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Skips subjects that this kernel cannot do."""
    indexed = "kind" in request.fixturenames and request.getfixturevalue("kind") == "indexed"
    if indexed and os.geteuid() == 0 and (refusal := probe.refusal(tmp_path)):
        pytest.skip(refusal)


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[TemporaryMounts]:
    made = TemporaryMounts(tmp_path / "tmpmounts")
    yield made
    made.close()
    unmount_all(tmp_path)
