"""The copy of crun that shims start."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.shim import sealed


@pytest.fixture
def crun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program of that name, first in `PATH`, and its copy."""
    program = tmp_path / "crun"
    shutil.copy(shutil.which("true") or "/bin/true", program)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(sealed, "_descriptor", -1)
    monkeypatch.setattr(sealed, "_source", ())
    sealed.keep()
    yield program
    for descriptor in sealed.descriptors():
        os.close(descriptor)


def test_the_copy_is_run_in_place_of_the_file_and_cannot_be_changed(crun: Path) -> None:
    (descriptor,) = sealed.descriptors()
    for binary in ("crun", str(crun)):
        assert sealed.program(binary) == f"/proc/self/fd/{descriptor}"
    assert Path(f"/proc/self/fd/{descriptor}").read_bytes() == crun.read_bytes()
    subprocess.run([sealed.program("crun")], pass_fds=[descriptor], check=True)
    with pytest.raises(PermissionError):
        os.write(descriptor, b"x")
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)


def test_another_program_and_a_new_version_are_run_from_their_files(crun: Path) -> None:
    assert sealed.program("runc") == "runc"
    assert sealed.program("/elsewhere/crun") == "/elsewhere/crun"
    os.utime(crun, (1, 1))
    assert sealed.program("crun") == "crun"
    crun.unlink()
    assert sealed.program(str(crun)) == str(crun)


def test_without_crun_there_is_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sealed, "_descriptor", -1)
    sealed.keep()
    assert sealed.descriptors() == set()
    assert sealed.program("crun") == "crun"
