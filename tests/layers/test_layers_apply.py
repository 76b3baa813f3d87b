"""Applying archives, friendly and hostile, to a directory."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tarfile
import threading
from io import BytesIO
from pathlib import Path

import pytest

from orlop.errors import Unknown
from orlop.layers import apply, tar, write
from orlop.layers.stream import ByteStream
from orlop.layers.tar import Entry, TarReader

ME, MINE = os.geteuid(), os.getegid()


def entry(name: bytes, type: bytes = tar.REGULAR, data: bytes = b"", mode: int = 0o644, **fields: object) -> bytes:
    made = Entry(name, type, mode, ME, MINE, len(data), 1_500_000_000 * 10**9, 0, len(data), **fields)  # type: ignore[arg-type]
    return write.head(made) + data + write.padding(len(data))


def put(root: Path, *entries: bytes, options: apply.Options | None = None) -> int:
    return apply.apply(TarReader(ByteStream([b"".join(entries) + write.END])), str(root), options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = tmp_path / "root"
    place.mkdir()
    return place


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    place = tmp_path / "outside"
    place.mkdir()
    (place / "x").write_text("host")
    (place / "x").chmod(0o600)
    return place


def snapshot(place: Path) -> list[tuple[str, int, bytes]]:
    return sorted((p.name, p.lstat().st_mode, p.read_bytes()) for p in place.iterdir())


@pytest.mark.parametrize("name", [b"../../evil", b"/evil", b"a/../../evil", b"./../evil"])
def test_a_name_that_leads_outside_ends_at_the_root(root: Path, name: bytes) -> None:
    put(root, entry(name, data=b"e"))
    assert (root / "evil").read_bytes() == b"e"
    assert [p.name for p in root.parent.iterdir()] == ["root"]


@pytest.mark.parametrize("climb", [b"", b"../../../../../../../.."])
def test_a_link_that_leads_outside_is_followed_inside(root: Path, outside: Path, climb: bytes) -> None:
    before = snapshot(outside)
    put(root, entry(b"l", tar.SYMLINK, link=climb + os.fsencode(outside)), entry(b"l/x", data=b"evil"))
    assert snapshot(outside) == before
    assert (root / str(outside)[1:] / "x").read_bytes() == b"evil"


@pytest.mark.parametrize("type", [tar.REGULAR, tar.DIRECTORY, tar.SYMLINK, tar.FIFO])
def test_no_mode_is_changed_through_a_link(root: Path, outside: Path, type: bytes) -> None:
    before = snapshot(outside)
    put(
        root,
        entry(b"a", tar.SYMLINK, link=os.fsencode(outside / "x")),
        entry(b"b", tar.LINK, link=b"a", mode=0o777),
        entry(b"a", type, mode=0o777, link=b"t"),
    )
    assert snapshot(outside) == before
    assert (root / "b").is_symlink()


def test_a_hard_link_does_not_reach_outside(root: Path, outside: Path) -> None:
    with pytest.raises(Unknown, match="no such file"):
        put(root, entry(b"l", tar.LINK, link=b"../outside/x"))
    with pytest.raises(Unknown, match="no such file"):
        put(root, entry(b"d", tar.SYMLINK, link=os.fsencode(outside)), entry(b"m", tar.LINK, link=b"d/x"))
    assert (outside / "x").lstat().st_nlink == 1


def test_a_link_loop_is_an_error(root: Path) -> None:
    with pytest.raises(Unknown, match="too many links"):
        put(root, entry(b"a", tar.SYMLINK, link=b"b"), entry(b"b", tar.SYMLINK, link=b"a"), entry(b"a/c"))


def test_a_directory_swapped_for_a_link_meanwhile_leads_nowhere_else(root: Path, outside: Path) -> None:
    before = snapshot(outside)
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            try:
                os.rename(root / "d", root / "e")
                os.symlink(outside, root / "d")
                os.unlink(root / "d")
                os.rename(root / "e", root / "d")
            except OSError:
                continue

    (root / "d").mkdir()
    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(300):
            try:
                put(root, entry(b"d/x", data=b"evil", mode=0o777), entry(b"d/y", tar.LINK, link=b"d/x"))
            except Unknown:
                continue
    finally:
        ended.set()
        swapper.join()
    assert snapshot(outside) == before


def test_parents_are_made_behind_a_link_to_nothing(root: Path) -> None:
    put(root, entry(b"lib", tar.SYMLINK, link=b"usr/lib"), entry(b"lib/f", data=b"1"))
    assert (root / "usr/lib/f").read_bytes() == b"1"
    assert stat.S_IMODE((root / "usr").stat().st_mode) == 0o755


@pytest.mark.parametrize("mask", [0, 0o22, 0o777])
def test_modes_do_not_depend_on_the_umask(root: Path, mask: int) -> None:
    script = (
        "import os, sys; from orlop.layers import apply; from orlop.layers.stream import ByteStream\n"
        "from orlop.layers.tar import TarReader\n"
        f"os.umask({mask}); apply.apply(TarReader(ByteStream([sys.stdin.buffer.read()])), {str(root)!r})"
    )
    archive = entry(b"p/f", mode=0o4751) + entry(b"d/", tar.DIRECTORY, mode=0o1777) + entry(b"o", tar.FIFO, mode=0o666)
    subprocess.run([sys.executable, "-c", script], input=archive + write.END, check=True)
    modes = {name: stat.S_IMODE((root / name).stat().st_mode) for name in ("p", "p/f", "d", "o")}
    assert modes == {"p": 0o755, "p/f": 0o4751, "d": 0o1777, "o": 0o666}


def test_a_directory_is_merged_and_anything_else_replaced(root: Path) -> None:
    put(root, entry(b"d/old"), entry(b"f/deep/er"), entry(b"s", tar.SYMLINK, link=b"d"))
    put(root, entry(b"d/", tar.DIRECTORY, mode=0o700), entry(b"f", data=b"now"), entry(b"s/", tar.DIRECTORY))
    assert (root / "d/old").exists()
    assert (root / "f").read_bytes() == b"now"
    assert (root / "s").is_dir()
    assert not (root / "s").is_symlink()


def test_what_is_cached_of_a_replaced_directory_is_not_used_again(root: Path) -> None:
    put(root, entry(b"a/b/one"), entry(b"a", tar.SYMLINK, link=b"c"), entry(b"a/b/two"))
    assert (root / "c/b/two").exists()
    assert not (root / "c/b/one").exists()


def test_whiteouts_delete_and_opaque_ones_spare_what_this_archive_has(root: Path) -> None:
    put(root, entry(b"d/old/x"), entry(b"d/sub/old"), entry(b"gone/x"), entry(b"stay"))
    put(root, entry(b".wh.gone"), entry(b"d/sub/new"), entry(b"d/.wh..wh..opq"), entry(b"d/later"))
    files = sorted(str(p.relative_to(root)) for p in root.rglob("*"))
    assert files == ["d", "d/later", "d/sub", "d/sub/new", "stay"]


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh...", b"d/.wh..."])
def test_a_whiteout_of_its_directory_is_refused(root: Path, name: bytes) -> None:
    with pytest.raises(Unknown, match=r"invalid whiteout name: \.wh\.+: invalid archive"):
        put(root, entry(name))


@pytest.mark.root
def test_whiteouts_of_an_overlay_merge_as_deleting_ones_do(tmp_path: Path) -> None:
    lower, upper, work, merged, plain = (tmp_path / n for n in ("lower", "upper", "work", "merged", "plain"))
    for place in (lower, upper, work, merged, plain):
        place.mkdir()
    base = [entry(b"d/old/x"), entry(b"d/both", data=b"1"), entry(b"gone/x"), entry(b"stay")]
    layer = [entry(b".wh.gone"), entry(b"d/both", data=b"2"), entry(b"d/.wh..wh..opq"), entry(b"d/new")]
    put(lower, *base)
    put(plain, *base)
    put(plain, *layer)
    put(upper, *layer, options=apply.Options(overlay=True, lowers=[str(lower)]))
    subprocess.run(
        ["mount", "-t", "overlay", "o", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", str(merged)],
        check=True,
    )
    try:
        listing = [sorted(str(p.relative_to(t)) for p in t.rglob("*")) for t in (merged, plain)]
        content = (merged / "d/both").read_bytes()
    finally:
        subprocess.run(["umount", str(merged)], check=True)
    assert listing[0] == listing[1] == ["d", "d/both", "d/new", "stay"]
    assert content == b"2"


@pytest.mark.root
def test_a_missing_parent_is_made_as_the_lower_directory_has_it(tmp_path: Path) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    (lower / "p").mkdir(parents=True)
    upper.mkdir()
    os.chown(lower / "p", 7, 8)
    os.chmod(lower / "p", 0o1710)
    os.setxattr(lower / "p", "user.k", b"v")
    put(upper, entry(b"p/f"), options=apply.Options(overlay=True, lowers=[str(lower)]))
    made = (upper / "p").stat()
    assert (made.st_uid, made.st_gid, stat.S_IMODE(made.st_mode)) == (7, 8, 0o1710)
    assert os.getxattr(upper / "p", "user.k") == b"v"


@pytest.mark.root
def test_devices_owners_attributes_and_times_arrive(root: Path) -> None:
    capability = b"\1\0\0\2\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    attributes = {b"security.capability": capability, b"user.k": b"\xff\0", b"trusted.no": b"1"}
    made = Entry(b"f", tar.REGULAR, 0o4755, 12, 34, 0, 10**18 + 123, 0, 0, xattrs=attributes)
    put(
        root,
        write.head(made),
        entry(b"null", tar.CHARACTER, major=1, minor=3),
        entry(b"loop", tar.BLOCK_DEVICE, major=7),
    )
    found = (root / "f").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12, 34, 0o4755)
    assert os.getxattr(root / "f", "security.capability") == capability
    assert sorted(os.listxattr(root / "f")) == ["security.capability", "user.k"]
    assert os.getxattr(root / "f", "user.k") == b"\xff\0"
    assert (root / "null").stat().st_rdev == os.makedev(1, 3)
    assert stat.S_ISBLK((root / "loop").stat().st_mode)


def test_times_have_nanoseconds_are_bounded_and_directories_come_last(root: Path) -> None:
    def stamped(name: str, type: bytes, mtime: str) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type = type
        info.uid, info.gid = ME, MINE
        info.pax_headers = {"mtime": mtime}
        return info

    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(stamped("d", tarfile.DIRTYPE, "1000.123456789"))
        archive.addfile(stamped("d/old", tarfile.REGTYPE, "-5.5"))
        archive.addfile(stamped("d/far", tarfile.REGTYPE, "99999999999999"))
    apply.apply(TarReader(ByteStream([buffer.getvalue()])), str(root))
    assert (root / "d").stat().st_mtime_ns == 1_000_123_456_789
    assert (root / "d/old").stat().st_mtime_ns == 0
    assert (root / "d/far").stat().st_mtime_ns == 0


def test_names_that_are_not_text_arrive_as_they_are(root: Path) -> None:
    put(root, entry(b"\xff\xfe/\x80", data=b"1"), entry(b"l", tar.SYMLINK, link=b"\xff"))
    assert os.listdir(os.fsencode(root / os.fsdecode(b"\xff\xfe"))) == [b"\x80"]
    assert os.readlink(os.fsencode(root) + b"/l") == b"\xff"


def test_the_root_entry_is_passed_over_and_an_unknown_type_refused(root: Path) -> None:
    mode = root.stat().st_mode
    put(root, entry(b"./", tar.DIRECTORY, mode=0o111))
    assert root.stat().st_mode == mode
    with pytest.raises(Unknown, match="unhandled tar header type 55"):
        put(root, entry(b"a", b"7"))


def test_a_device_number_out_of_range_is_refused(root: Path) -> None:
    block = bytearray(entry(b"n", tar.CHARACTER))
    block[329:337] = b"\x80\0\0\1\0\0\0\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with pytest.raises(Unknown, match="out of range"):
        put(root, bytes(block))


@pytest.mark.parametrize("style", ["v7", "ustar", "gnu", "pax", "oldgnu"])
def test_an_archive_of_gnu_tar_unpacks_as_gnu_tar_does(tmp_path: Path, style: str) -> None:
    source = tmp_path / "source"
    (source / "dir").mkdir(parents=True)
    (source / "dir/file").write_bytes(os.urandom(5000))
    os.link(source / "dir/file", source / "dir/twin")
    os.symlink("dir/file", source / "sym")
    if style != "v7":
        os.mkfifo(source / "fifo")
    with open(source / "sparse", "wb") as file:
        for at in range(30):
            file.seek(at * 200_000)
            file.write(b"x%d" % at)
    if style in ("gnu", "pax", "oldgnu"):
        long = source / ("n" * 90) / ("m" * 120)
        long.mkdir(parents=True)
        os.symlink("t" * 150, long / "l")
    archive = tmp_path / "a.tar"
    sparse = [] if style in ("v7", "ustar") else ["--sparse"]
    subprocess.run(["tar", f"--format={style}", *sparse, "-cf", archive, "-C", source, "."], check=True)
    results = []
    for name in ("theirs", "ours"):
        (tmp_path / name).mkdir()
    subprocess.run(["tar", "-xpf", archive, "-C", tmp_path / "theirs"], check=True)
    apply.apply(TarReader(ByteStream([archive.read_bytes()])), str(tmp_path / "ours"))
    for name in ("theirs", "ours"):
        results.append(tree_of(tmp_path / name))
    assert results[0] == results[1]


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_sparse_files_of_every_pax_format_have_their_holes(tmp_path: Path, root: Path, version: str) -> None:
    with open(tmp_path / "s", "wb") as file:
        for at in range(50):
            file.seek(at * 100_000 + 50_000)
            file.write(b"%d" % at)
        file.truncate(20_000_000)
    archive = tmp_path / "a.tar"
    subprocess.run(
        ["tar", "--format=pax", f"--sparse-version={version}", "-Scf", archive, "-C", tmp_path, "s"], check=True
    )
    apply.apply(TarReader(ByteStream([archive.read_bytes()])), str(root))
    assert (root / "s").read_bytes() == (tmp_path / "s").read_bytes()
    assert (root / "s").stat().st_blocks * 512 < 2_000_000


def tree_of(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in root.rglob("*"):
        s = path.lstat()
        content: object = None
        if stat.S_ISLNK(s.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(s.st_mode):
            content = path.read_bytes()
        size = s.st_size if stat.S_ISREG(s.st_mode) else 0
        found[str(path.relative_to(root))] = (s.st_mode, s.st_uid, s.st_gid, size, s.st_mtime_ns, content, s.st_rdev)
    return found
