"""Lets the tests of this room share its conformance suite and what that runs over."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.mounts.mount import unmount_all
from orlop.mounts.temporary import TemporaryMounts

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("conformance")


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[TemporaryMounts]:
    made = TemporaryMounts(tmp_path / "tmpmounts")
    yield made
    made.close()
    unmount_all(tmp_path)
