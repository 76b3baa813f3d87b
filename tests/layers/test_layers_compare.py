"""Layers made by comparing two trees, and that applying them gives the second tree back."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orlop.layers import apply, compare, tar
from orlop.layers.stream import ByteStream
from orlop.layers.tar import Entry, TarReader


def layer_of(lower: Path, upper: Path, epoch: int | None = None) -> bytes:
    parts: list[bytes] = []
    compare.compare(str(lower), str(upper), parts.append, epoch=epoch)
    return b"".join(parts)


def entries_of(layer: bytes) -> list[Entry]:
    return list(TarReader(ByteStream([layer])))


def names_of(layer: bytes) -> list[bytes]:
    return [entry.name for entry in entries_of(layer)]


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    place = tmp_path / "lower"
    place.mkdir()
    return place


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    place = tmp_path / "upper"
    place.mkdir()
    return place


def copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)


def test_equal_trees_make_an_empty_layer(lower: Path, upper: Path) -> None:
    (lower / "d").mkdir()
    (lower / "d/f").write_text("1")
    copy(lower, upper)
    assert layer_of(lower, upper) == bytes(1024)


def test_parents_precede_a_change_and_a_removed_tree_is_one_whiteout(lower: Path, upper: Path) -> None:
    (lower / "a/b").mkdir(parents=True)
    (lower / "a/b/f").write_text("1")
    (lower / "gone/deep").mkdir(parents=True)
    (lower / "gone/deep/f").touch()
    copy(lower, upper)
    shutil.rmtree(upper / "gone")
    (upper / "a/b/f").write_text("22")
    (upper / "a.b").touch()
    layer = layer_of(lower, upper)
    assert names_of(layer) == [b"a/", b"a/b/", b"a/b/f", b"a.b", b".wh.gone"]
    whiteout = entries_of(layer)[-1]
    assert (whiteout.type, whiteout.mode, whiteout.size, whiteout.mtime) == (tar.REGULAR, 0, 0, 0)


def test_hard_links_name_the_first_and_unchanged_names_of_a_changed_inode_follow(lower: Path, upper: Path) -> None:
    for root in (lower, upper):
        (root / "d").mkdir()
        (root / "d/a").write_text("1")
        os.utime(root / "d/a", (5, 5))
        os.utime(root / "d", (5, 5))
    os.link(upper / "d/a", upper / "e")
    found = [(entry.name, entry.type, entry.link) for entry in entries_of(layer_of(lower, upper))]
    assert found == [(b"e", tar.REGULAR, b""), (b"d/", tar.DIRECTORY, b""), (b"d/a", tar.LINK, b"e")]


def test_sockets_are_left_out_and_times_cut_and_bounded(lower: Path, upper: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(upper / "s"))
        (upper / "f").touch()
        os.utime(upper / "f", ns=(0, 2_000_000_000_999_999_999))
        plain, bounded = layer_of(lower, upper), layer_of(lower, upper, epoch=1_000_000_000_500_000_000)
    assert names_of(plain) == [b"f"]
    assert entries_of(plain)[0].mtime == 2_000_000_000 * 10**9
    assert entries_of(bounded)[0].mtime == 1_000_000_000 * 10**9


def test_equal_times_in_whole_seconds_are_settled_by_content(lower: Path, upper: Path) -> None:
    for root, text, ns in ((lower, "one", 10**18), (upper, "two", 10**18)):
        (root / "whole").write_text(text)
        (root / "fine").write_text(text)
        os.utime(root / "whole", ns=(ns, ns))
        os.utime(root / "fine", ns=(ns + 5, ns + 5))
    assert names_of(layer_of(lower, upper)) == [b"whole"]


@pytest.mark.root
def test_of_attributes_only_the_capability_is_kept(lower: Path, upper: Path) -> None:
    (upper / "f").touch()
    capability = b"\1\0\0\2\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    os.setxattr(upper / "f", "security.capability", capability)
    os.setxattr(upper / "f", "user.k", b"v")
    assert dict(entries_of(layer_of(lower, upper))[0].xattrs) == {b"security.capability": capability}


@pytest.mark.root
def test_devices_and_large_owners_survive(lower: Path, upper: Path, tmp_path: Path) -> None:
    os.mknod(upper / "n", stat.S_IFCHR | 0o620, os.makedev(4, 300))
    os.chmod(upper / "n", 0o620)
    os.chown(upper / "n", 3_000_000_000, 4_000_000)
    target = tmp_path / "target"
    target.mkdir()
    apply.apply(TarReader(ByteStream([layer_of(lower, upper)])), str(target))
    found = (target / "n").lstat()
    assert (found.st_rdev, found.st_uid, found.st_gid) == (os.makedev(4, 300), 3_000_000_000, 4_000_000)
    assert stat.S_IMODE(found.st_mode) == 0o620


NAMES = st.sampled_from([b"a", b"b", b"a.b", b"\xff\x01", "ü".encode(), b"n" * 120, b"with space"])
NODES = st.one_of(
    st.tuples(st.just("file"), st.binary(max_size=1200), st.sampled_from([0o600, 0o755, 0o4711])),
    st.tuples(st.just("link"), st.binary(min_size=1, max_size=150).filter(lambda b: b"\0" not in b), st.just(0)),
    st.tuples(st.just("fifo"), st.just(b""), st.just(0o640)),
)
TREES = st.recursive(NODES, lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=15)


def make(path: bytes, node: object) -> None:
    if isinstance(node, dict):
        os.makedirs(path, exist_ok=True)
        for name, child in node.items():
            make(path + b"/" + name, child)
        return
    kind, data, mode = node  # type: ignore[misc]
    if kind == "file":
        with open(path, "wb") as file:
            file.write(data)
        os.chmod(path, mode)
    elif kind == "link":
        os.symlink(data, path)
    else:
        os.mkfifo(path)
        os.chmod(path, mode)
    os.utime(path, ns=(10**18, 10**18 + 10**9 * len(data)), follow_symlinks=False)


def described(path: bytes) -> object:
    found = os.lstat(path)
    if stat.S_ISDIR(found.st_mode):
        return (found.st_mode, {name: described(path + b"/" + name) for name in sorted(os.listdir(path))})
    content = b""
    if stat.S_ISLNK(found.st_mode):
        content = os.readlink(path)
    elif stat.S_ISREG(found.st_mode):
        with open(path, "rb") as file:
            content = file.read()
    return found.st_mode, found.st_mtime_ns, content


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(NAMES, TREES, max_size=4), st.dictionaries(NAMES, TREES, max_size=4))
def test_applying_the_difference_gives_the_second_tree(before: object, after: object) -> None:
    with tempfile.TemporaryDirectory() as place:
        lower, upper, target = (os.fsencode(f"{place}/{name}") for name in ("lower", "upper", "target"))
        for path, tree in ((lower, before), (target, before), (upper, after)):
            make(path, tree)
        layer = layer_of(Path(os.fsdecode(lower)), Path(os.fsdecode(upper)))
        assert layer == layer_of(Path(os.fsdecode(lower)), Path(os.fsdecode(upper)))
        apply.apply(TarReader(ByteStream([layer])), target)
        assert described(target) == described(upper)
