"""Entry points of installed packages, told as `importlib.metadata` tells them."""

from __future__ import annotations

import importlib.metadata
import json.decoder
from pathlib import Path

import pytest

from orlop.daemon.entry_points import EntryPoint, entry_points


@pytest.mark.parametrize("group", ["orlop.plugins", "console_scripts", "pytest11", "nobody.has.this"])
def test_what_is_installed_here_is_found_as_the_standard_library_finds_it(group: str) -> None:
    ours = {(one.name, one.value) for one in entry_points(group)}
    theirs = {(one.name, one.value) for one in importlib.metadata.entry_points(group=group)}
    assert ours == theirs


def _installed(path: Path, name: str, text: str | None) -> None:
    information = path / name
    information.mkdir(parents=True)
    if text is not None:
        (information / "entry_points.txt").write_text(text)


def test_the_first_of_two_packages_of_one_name_counts(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    _installed(first, "An_Example-2.0.dist-info", "[g]\nnew = a:b\n[other]\nx = y:z\n")
    _installed(second, "an.example-1.0.dist-info", "[g]\nold = a:b\n")
    _installed(second, "another.egg-info", "; nothing\n[g]\n# nothing\n\n  spaced  =  c.d : e.f [extra]\nbroken\n")
    _installed(second, "without-1.dist-info", None)
    paths = [str(first), str(second), str(tmp_path / "not-there"), __file__]
    assert entry_points("g", paths) == [
        EntryPoint("new", "a:b", "an-example"),
        EntryPoint("spaced", "c.d : e.f [extra]", "another"),
    ]


def test_a_value_is_a_module_and_what_is_in_it() -> None:
    assert EntryPoint("n", "json.decoder : JSONDecoder.decode [extra]", "p").load() is json.decoder.JSONDecoder.decode
    assert EntryPoint("n", "json.decoder", "p").load() is json.decoder
    with pytest.raises(ModuleNotFoundError):
        EntryPoint("n", "no_such_module:x", "p").load()
