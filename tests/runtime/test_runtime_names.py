from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.api.runtime.bootstrap.v1 import bootstrap_pb2
from orlop.errors import OrlopError, Unknown
from orlop.runtime.bootstrap import parse_answer
from orlop.runtime.bundle import Bootstrap
from orlop.runtime.names import ShimBinaries, binary_name
from orlop.runtime.shims import group_of, socket_path


@pytest.mark.parametrize(
    ("name", "binary"),
    [
        ("io.containerd.runc.v2", "containerd-shim-runc-v2"),
        ("a.b", "containerd-shim-a-b"),
        ("runc", ""),
        (".runc", ""),
        ("a/b.c", ""),
    ],
)
def test_a_runtime_name_stands_for_a_binary(name: str, binary: str) -> None:
    assert binary_name(name) == binary


def test_a_bad_runtime_name_is_refused_in_containerds_words() -> None:
    with pytest.raises(Unknown, match="invalid runtime name runc, correct runtime name should be either format like"):
        ShimBinaries().resolve("runc")


def test_a_missing_binary_is_named() -> None:
    with pytest.raises(Unknown) as caught:
        ShimBinaries().resolve("io.none.such.v9")
    text = 'failed to resolve runtime path: runtime "io.none.such.v9" binary not installed '
    assert str(caught.value) == text + '"containerd-shim-such-v9": file does not exist'


def test_an_absolute_path_is_taken_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(Unknown, match="file does not exist"):
        ShimBinaries().resolve(str(tmp_path / "shim"))
    (tmp_path / "shim").touch(0o755)
    assert ShimBinaries().resolve(str(tmp_path / "shim")).path == str(tmp_path / "shim")


def test_runtimes_of_our_own_shim_are_forked_unless_configured_otherwise() -> None:
    assert ShimBinaries().resolve("io.containerd.runc.v2").builtin
    assert not ShimBinaries(("io.containerd.orlop.v2",)).resolve("/bin/true").builtin


def test_an_answer_has_three_forms() -> None:
    message = bootstrap_pb2.BootstrapResult(version=3, address="unix:///s", protocol="ttrpc")
    assert parse_answer(message.SerializeToString()) == Bootstrap(3, "unix:///s")
    assert parse_answer(b'{"version":2,"address":"unix:///s","protocol":"ttrpc"}\n') == Bootstrap(2, "unix:///s")
    assert parse_answer(b"unix:///s\n") == Bootstrap(2, "unix:///s")


def test_a_version_of_the_future_is_refused() -> None:
    with pytest.raises(Unknown, match=r"^unsupported shim version \(4\)$"):
        parse_answer(b'{"version":4,"address":"unix:///s","protocol":"ttrpc"}')


@given(st.binary(max_size=200))
def test_any_answer_is_an_address_or_an_error(output: bytes) -> None:
    try:
        assert parse_answer(output).address
    except OrlopError:
        pass


def test_containers_of_one_group_share_a_socket() -> None:
    spec = json.dumps({"annotations": {"io.kubernetes.cri.sandbox-id": "pod"}}).encode()
    assert group_of(spec, "a") == group_of(spec, "b") == "pod"
    assert group_of(b"{}", "a") == "a"
    assert socket_path("/s", "/run/x.sock", "ns", "pod") == ("/s/" + hashlib.sha256(b"/run/x.sock/ns/pod").hexdigest())
