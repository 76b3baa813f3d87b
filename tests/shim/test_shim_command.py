"""The shim's command line, as daemons of several ages call it."""

from __future__ import annotations

import json

import pytest

from orlop.shim import main


@pytest.mark.parametrize(
    ("most", "is_bootstrap", "version"),
    [
        (None, False, None),  # containerd 1.6 takes an address alone
        ("2", False, 2),  # containerd 1.7 refuses version 3
        ("3", False, 3),
        ("9", False, 3),
        ("1", False, 2),
        ("many", False, 3),
        ("2", True, 3),  # containerd 2.4 says 2 and takes 3
        (None, True, 3),
    ],
)
def test_the_answer_is_one_that_the_daemon_takes(
    monkeypatch: pytest.MonkeyPatch, most: str | None, is_bootstrap: bool, version: int | None
) -> None:
    monkeypatch.delenv("MAX_SHIM_VERSION", raising=False)
    if most is not None:
        monkeypatch.setenv("MAX_SHIM_VERSION", most)
    answer = main._answer("/run/s/x", is_bootstrap)
    if version is None:
        assert answer == "unix:///run/s/x"
    else:
        assert json.loads(answer) == {"version": version, "address": "unix:///run/s/x", "protocol": "ttrpc"}
