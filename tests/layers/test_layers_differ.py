"""The walking differ over a content store of plain files and directories that stand for mounts."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from orlop.core.content import ContentInfo
from orlop.core.descriptor import Descriptor
from orlop.core.mount import Mount
from orlop.core.scope import Scope
from orlop.errors import NotFound, Unimplemented, Unknown
from orlop.layers import media, tar, write
from orlop.layers.chain import DifferChain
from orlop.layers.differ import UNCOMPRESSED_LABEL, WalkingDiffer
from orlop.layers.processors import StreamProcessor
from orlop.layers.tar import Entry

SCOPE = Scope("test")
TAR = (
    write.head(Entry(b"f", tar.REGULAR, 0o644, os.geteuid(), os.getegid(), 2, 0, 0, 2)) + b"hi" + bytes(510) + write.END
)
DIFF_ID = f"sha256:{hashlib.sha256(TAR).hexdigest()}"


class FileReader:
    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._fd).st_size

    def fileno(self) -> int:
        return self._fd

    async def close(self) -> None:
        os.close(self._fd)


class BytesWriter:
    def __init__(self, store: FileStore) -> None:
        self._store = store
        self.data = b""

    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"

    async def truncate(self, size: int) -> None:
        self.data = self.data[:size]

    async def write(self, data: bytes) -> int:
        self.data += data
        return len(self.data)

    async def commit(self, size: int, expected: str, labels: dict[str, str]) -> ContentInfo:
        self._store.put(self.data)
        self._store.committed = ContentInfo(expected, len(self.data), labels=labels)
        return self._store.committed

    async def close(self) -> None: ...


class FileStore:
    def __init__(self, root: Path) -> None:
        self._root = root
        self.committed: ContentInfo | None = None
        self.aborted: list[str] = []

    def put(self, data: bytes, media_type: str = "") -> Descriptor:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        (self._root / digest).write_bytes(data)
        return Descriptor(media_type, digest, len(data))

    async def open_reader(self, scope: Scope, digest: str) -> FileReader:
        if not (self._root / digest).is_file():
            raise NotFound(f"content digest {digest}")
        return FileReader(self._root / digest)

    async def open_writer(self, scope: Scope, ref: str, total: int = 0, expected: str = "") -> BytesWriter:
        return BytesWriter(self)

    async def abort(self, scope: Scope, ref: str) -> None:
        self.aborted.append(ref)


class Directories:
    @contextlib.contextmanager
    def mounted(self, mounts: Sequence[Mount], *, readonly: bool = False) -> Iterator[str]:
        yield mounts[0].source


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    (tmp_path / "blobs").mkdir()
    return FileStore(tmp_path / "blobs")


@pytest.fixture
def target(tmp_path: Path) -> Mount:
    (tmp_path / "target").mkdir()
    return Mount("bind", str(tmp_path / "target"))


def differ(store: FileStore, *processors: StreamProcessor) -> WalkingDiffer:
    return WalkingDiffer(store, Directories(), processors)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("media_type", "data"),
    [
        (media.OCI_LAYER, TAR),
        (media.OCI_LAYER_GZIP, gzip.compress(TAR, mtime=0)),
        (media.OCI_LAYER_GZIP, TAR),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", gzip.compress(TAR, mtime=0)),
    ],
)
async def test_a_layer_is_applied_and_its_diff_id_told(
    store: FileStore, target: Mount, media_type: str, data: bytes
) -> None:
    applied = await differ(store).apply(SCOPE, store.put(data, media_type), [target], sync_fs=True)
    assert applied == Descriptor(media.OCI_LAYER, DIFF_ID, len(TAR))
    assert (Path(target.source) / "f").read_bytes() == b"hi"


async def test_errors_have_the_words_clients_know(store: FileStore, target: Mount) -> None:
    walking = differ(store)
    with pytest.raises(Unknown, match=r"^failed to get stream processor for foo/bar: no processor for media-type$"):
        await walking.apply(SCOPE, store.put(TAR, "foo/bar"), [target])
    with pytest.raises(
        NotFound, match=r"^failed to get reader from content store: content digest sha256:0: not found$"
    ):
        await walking.apply(SCOPE, Descriptor(media.OCI_LAYER, "sha256:0", 1), [target])
    where = f"^mount callback failed on {target.source}: "
    with pytest.raises(Unknown, match=where + "archive/tar: invalid tar header"):
        await walking.apply(SCOPE, store.put(b"no tar" * 200, media.OCI_LAYER), [target])
    with pytest.raises(Unknown, match=where + "unexpected EOF$"):
        await walking.apply(SCOPE, store.put(TAR[:600], media.OCI_LAYER), [target])


async def test_a_program_turns_one_media_type_into_another(store: FileStore, target: Mount) -> None:
    upper = StreamProcessor(
        "t", ["x/y"], media.OCI_LAYER_GZIP, "sh", ["-c", 'test "$STREAM_PROCESSOR_MEDIATYPE" = x/y && cat']
    )
    applied = await differ(store, upper).apply(SCOPE, store.put(gzip.compress(TAR, mtime=0), "x/y"), [target])
    assert applied.digest == DIFF_ID
    failing = StreamProcessor("t", ["x/y"], media.OCI_LAYER, "sh", ["-c", "cat; echo no key >&2; exit 3"])
    with pytest.raises(Unknown, match="no key"):
        await differ(store, failing).apply(SCOPE, store.put(TAR, "x/y"), [target])
    missing = StreamProcessor("t", ["x/y"], media.OCI_LAYER, "no-such-decoder")
    with pytest.raises(Unknown, match=r'x/y: exec: "no-such-decoder": executable file not found in \$PATH'):
        await differ(store, missing).apply(SCOPE, store.put(TAR, "x/y"), [target])


async def test_a_difference_is_stored_with_its_diff_id(store: FileStore, target: Mount, tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper/f").write_text("hi")
    made = await differ(store).compare(SCOPE, [target], [Mount("bind", str(tmp_path / "upper"))])
    assert made.media_type == media.OCI_LAYER_GZIP
    assert store.committed is not None
    applied = await differ(store).apply(SCOPE, made, [target])
    assert store.committed.labels == {UNCOMPRESSED_LABEL: applied.digest}
    assert (Path(target.source) / "f").read_text() == "hi"
    with pytest.raises(Unimplemented, match=r"^unsupported diff media type: a/b: not implemented$"):
        await differ(store).compare(SCOPE, [target], [target], media_type="a/b")


async def test_a_chain_needs_its_differs_and_asks_in_order(store: FileStore, target: Mount) -> None:
    with pytest.raises(Unknown, match=r"^needed differ not loaded: erofs$"):
        DifferChain.of(["walking", "erofs"], {"walking": differ(store)})
    chain = DifferChain([DifferChain([]), differ(store)])
    assert (await chain.apply(SCOPE, store.put(TAR, media.OCI_LAYER), [target])).digest == DIFF_ID
