"""What runtimes say, and what clients get to read of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from orlop.shim import runtime_log


@pytest.mark.parametrize(
    ("cruns", "runcs"),
    [
        ("error opening file `/run/crun/x/status`: No such file or directory", "container does not exist"),
        ("cannot open directory '/run/crun/x': No such file or directory", "container does not exist"),
        (
            "error opening file `/run/crun/x/y`: Permission denied",
            "error opening file `/run/crun/x/y`: permission denied",
        ),
        ("the container `x` is not running", "container not running"),
        ("kill container: No such process", "kill container: no such process"),
        (
            "executable file `/x` not found in $PATH: No such file or directory",
            'exec: "/x": stat /x: no such file or directory',
        ),
        (
            "executable file `x` not found in $PATH: No such file or directory",
            'exec: "x": executable file not found in $PATH',
        ),
        ("open executable: Operation not permitted", "open executable: permission denied"),
        ("mount `/A` to `/B`: Invalid argument", "mount `/A` to `/B`: invalid argument"),
    ],
)
def test_cruns_words_are_turned_into_those_that_clients_look_for(cruns: str, runcs: str) -> None:
    assert runtime_log.in_runcs_words(cruns) == runcs


def test_the_last_error_since_a_moment_is_found(tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    assert runtime_log.last_error(str(log), runtime_log.size(str(log))) == ""
    log.write_text('{"level":"error","msg":"old"}\n')
    seen = runtime_log.size(str(log))
    assert runtime_log.last_error(str(log), seen) == ""
    with log.open("a") as file:
        file.write('{"level":"error","msg":"first"}\n{"level":"error","msg":" last "}\n{"level":"warning"}\nno JSON\n')
    assert runtime_log.last_error(str(log), seen) == "last"
