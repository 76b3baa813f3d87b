"""The rehearsal before the fork: it is played to its end, and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from patience import patient

_PROGRAM = """
import ctypes, json, logging, os, signal, sys
from orlop.shim.rehearsal import rehearse

logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)

def state():
    subreaper = ctypes.c_int()
    ctypes.CDLL(None).prctl(37, ctypes.byref(subreaper), 0, 0, 0)
    with open("/proc/self/task/%d/children" % os.getpid()) as children:
        return {
            "descriptors": sorted(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "children": children.read(),
            "subreaper": subreaper.value,
            "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
            "directory": os.getcwd(),
        }

before = state()
rehearse(sys.argv[1])
print(json.dumps([before, state()]))
"""


def _rehearse(directory: Path) -> tuple[list[dict[str, object]], str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(directory)],
        capture_output=True,
        text=True,
        check=True,
        timeout=patient(60),
    )
    return json.loads(done.stdout), done.stderr


def test_a_rehearsal_succeeds_and_leaves_nothing(tmp_path: Path) -> None:
    (before, after), said = _rehearse(tmp_path / "r")
    assert said == ""
    assert after == before
    assert list(tmp_path.iterdir()) == []


def test_a_rehearsal_that_cannot_be_played_does_no_harm(tmp_path: Path) -> None:
    (before, after), said = _rehearse(tmp_path / "missing" / "r")
    assert "no rehearsal: " in said
    assert after == before


def test_what_a_killed_rehearsal_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "r" / "b").mkdir(parents=True)
    (_, _), said = _rehearse(tmp_path / "r")
    assert said == ""
    assert list(tmp_path.iterdir()) == []


def test_faults_that_are_asked_for_happen_to_shims_and_not_to_what_is_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORLOP_FAULTS", "shim.create.created=kill;shim.start.started=kill;shim.delete.deleted=kill")
    (before, after), said = _rehearse(tmp_path / "played")
    assert before == after
    assert "no rehearsal" not in said
