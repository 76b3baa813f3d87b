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

from layer_world import Layered, layered  # noqa: E402 - of this directory, which had to be put into the path


@pytest.fixture(autouse=True)
def _kernel(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Skips subjects that this kernel cannot do."""
    indexed = "kind" in request.fixturenames and request.getfixturevalue("kind") == "indexed"
    if indexed and os.geteuid() == 0 and (refusal := probe.refusal(tmp_path)):
        pytest.skip(refusal)


@pytest.fixture
def indexable(tmp_path: Path) -> None:
    """Skips where layers cannot be kept and mounted."""
    if os.geteuid():
        pytest.skip("needs root")
    if refusal := probe.refusal(tmp_path):
        pytest.skip(refusal)


@pytest.fixture
def world(indexable: None, tmp_path: Path, temporary: TemporaryMounts) -> Iterator[Layered]:
    with layered(tmp_path / "world", temporary) as made:
        yield made


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[TemporaryMounts]:
    made = TemporaryMounts(tmp_path / "tmpmounts")
    yield made
    made.close()
    unmount_all(tmp_path)
