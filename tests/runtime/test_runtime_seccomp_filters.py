"""Seccomp filters that crun has compiled, handed to the next container."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from orlop.runtime.seccomp_filters import ANNOTATION, STATE_FILE, SeccompFilters

PROFILE = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}
FILTER = bytes(range(16))


def spec(profile: Any = PROFILE, annotations: Any = None) -> bytes:
    document: dict[str, Any] = {"ociVersion": "1.0.2", "linux": {"seccomp": profile, "namespaces": []}}
    if annotations is not None:
        document["annotations"] = annotations
    return json.dumps(document).encode()


def taught(state: Path, compiled: bytes = FILTER, limit: int = 16) -> SeccompFilters:
    filters = SeccompFilters(limit)
    _, profile = filters.applied(spec())
    assert profile is not None
    (state / STATE_FILE).write_bytes(compiled)
    filters.learn(profile, str(state))
    return filters


def test_a_filter_that_was_learnt_is_in_the_next_spec_of_its_profile(tmp_path: Path) -> None:
    filters = taught(tmp_path)
    applied, profile = filters.applied(spec(annotations={"mine": "kept"}))
    assert profile is None
    document = json.loads(applied)
    assert base64.b64decode(document["annotations"].pop(ANNOTATION)) == FILTER
    assert document == json.loads(spec(annotations={"mine": "kept"}))


def test_another_profile_is_not_given_the_filter(tmp_path: Path) -> None:
    filters = taught(tmp_path)
    other = spec({**PROFILE, "defaultAction": "SCMP_ACT_KILL"})
    applied, profile = filters.applied(other)
    assert applied == other
    assert profile is not None


@pytest.mark.parametrize(
    "left",
    [
        spec(None),
        b'{"ociVersion": "1.0.2"}',
        b"no JSON",
        spec({**PROFILE, "defaultAction": "SCMP_ACT_NOTIFY"}),
        spec({**PROFILE, "listenerPath": "/run/listener"}),
        spec(annotations={"run.oci.seccomp_fail_unknown_syscall": "1"}),
        spec(annotations={ANNOTATION: "AAAA"}),
        spec(annotations={"number": 1}),
    ],
)
def test_what_is_not_a_matter_of_the_profile_alone_is_left_to_crun(tmp_path: Path, left: bytes) -> None:
    assert taught(tmp_path).applied(left) == (left, None)


@pytest.mark.parametrize("compiled", [b"", b"1234567", bytes(8 * 4097)])
def test_what_is_no_filter_is_not_learnt(tmp_path: Path, compiled: bytes) -> None:
    applied, profile = taught(tmp_path, compiled).applied(spec())
    assert applied == spec()
    assert profile is not None


def test_a_state_without_a_filter_teaches_nothing(tmp_path: Path) -> None:
    filters = SeccompFilters()
    _, profile = filters.applied(spec())
    assert profile is not None
    filters.learn(profile, str(tmp_path))
    assert filters.applied(spec()) == (spec(), profile)


def test_the_filter_that_was_not_asked_for_longest_goes(tmp_path: Path) -> None:
    filters = taught(tmp_path, limit=1)
    other = spec({**PROFILE, "defaultAction": "SCMP_ACT_KILL"})
    _, profile = filters.applied(other)
    assert profile is not None
    filters.learn(profile, str(tmp_path))
    assert ANNOTATION.encode() in filters.applied(other)[0]
    assert filters.applied(spec())[0] == spec()
