"""Writes an image, most of it while its entries become known.

All but directories is appended when it is added and leaves memory; what remains is its directory's entry, some hundred
bytes. Directories are laid out at the end, when all their names are known. The same calls make the same bytes.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Mapping, Sequence
from struct import Struct

from orlop.erofs import directory, inode, layout, xattrs
from orlop.erofs.directories import ROOT, TYPE_BITS, TYPE_MASK, Directories, Target
from orlop.erofs.inode import Inode
from orlop.erofs.layout import BLOCK, BLOCK_BITS, SLOT, SLOT_BITS, Unrepresentable, aligned
from orlop.erofs.output import Output, write_all
from orlop.erofs.superblock import Superblock, device_blocks, start_of_inodes
from orlop.erofs.xattrs import SharedXattrs

_SECOND = 1_000_000_000
_NO_XATTRS: Mapping[bytes, bytes] = {}
_INLINE_LIMIT = BLOCK - layout.EXTENDED.size
_ROOT_SIZE = BLOCK

_ONE_CHUNK = Struct("<HHHHQIIIIQII16xHHI24x")
"""An extended inode, the index of its only chunk, and what is left of its slots."""


class ImageWriter:
    """An image on `fd`, which is empty and open for reading and writing, over so many `devices`."""

    def __init__(self, fd: int, devices: int = 1) -> None:
        self._fd = fd
        start = start_of_inodes(devices)
        self._out = Output(fd, start)
        self._out.append(bytes(_ROOT_SIZE))
        self._root = start >> SLOT_BITS
        self._count = 0
        self._shared = SharedXattrs()
        self._moved: dict[int, int] = {}
        self.directories = Directories()
        self.directories.add(ROOT, 0o755, 0, 0, 0, implied=True)

    def regular(
        self,
        mode: int,
        uid: int,
        gid: int,
        mtime: int,
        size: int,
        block: int,
        xattrs: Mapping[bytes, bytes] = _NO_XATTRS,
        device: int = 1,
    ) -> Target:
        """A file whose data begins at `block` of a device and lies in one piece. Raises Unrepresentable."""
        blocks = (size + BLOCK - 1) >> BLOCK_BITS
        if xattrs or not size or blocks > 1 << layout.CHUNK_BITS_MASK:
            return self._unusual(mode, uid, gid, mtime, size, block, xattrs, device)
        if block + blocks > layout.LARGEST_BLOCK:
            raise Unrepresentable("data beyond 2 TiB of a device")
        out = self._out
        nid = out.end >> SLOT_BITS
        seconds, nanoseconds = divmod(mtime, _SECOND)
        out.append(
            _ONE_CHUNK.pack(
                layout.FORMAT_EXTENDED | layout.CHUNK_BASED,
                0,
                0o100000 | mode & 0o7777,
                0,
                size,
                layout.CHUNK_INDEXES | (blocks - 1).bit_length(),
                nid & 0xFFFFFFFF,
                uid,
                gid,
                seconds,
                nanoseconds,
                1,
                0,
                device,
                block,
            )
        )
        self._count += 1
        return nid << TYPE_BITS | layout.REGULAR

    def _unusual(
        self,
        mode: int,
        uid: int,
        gid: int,
        mtime: int,
        size: int,
        block: int,
        xattrs: Mapping[bytes, bytes],
        device: int,
    ) -> Target:
        if not size:
            return self._plain(stat.S_IFREG | mode & 0o7777, uid, gid, mtime, 0, xattrs)
        format = inode.chunk_format(size)
        step = 1 << (format & layout.CHUNK_BITS_MASK)
        count = -(-size // (step * BLOCK))
        return self.chunked(
            mode, uid, gid, mtime, size, format, [(device, block + number * step) for number in range(count)], xattrs
        )

    def chunked(
        self,
        mode: int,
        uid: int,
        gid: int,
        mtime: int,
        size: int,
        format: int,
        chunks: Sequence[tuple[int, int]],
        xattrs: Mapping[bytes, bytes] = _NO_XATTRS,
    ) -> Target:
        """A file in chunks of the size that `format` says: (device, block) of each, HOLE as block for none."""
        if not size:
            return self._plain(stat.S_IFREG | mode & 0o7777, uid, gid, mtime, 0, xattrs)
        pieces: list[bytes] = []
        for device, block in chunks:
            if block == layout.HOLE:
                pieces.append(layout.CHUNK_HOLE)
            elif block > layout.LARGEST_BLOCK:
                raise Unrepresentable("data beyond 2 TiB of a device")
            else:
                pieces.append(layout.CHUNK.pack(0, device, block))
        made = Inode(0, stat.S_IFREG | mode & 0o7777, uid, gid, mtime, 1, size, layout.CHUNK_BASED, format)
        return self._add(made, self._shared.body(xattrs), b"".join(pieces))

    def symlink(
        self, uid: int, gid: int, mtime: int, link: bytes, xattrs: Mapping[bytes, bytes] = _NO_XATTRS
    ) -> Target:
        """A symbolic link to `link`, which is not empty and shorter than a page."""
        body = self._shared.body(xattrs)
        made = Inode(0, stat.S_IFLNK | 0o777, uid, gid, mtime, 1, len(link), layout.FLAT_INLINE, 0)
        if len(body) + len(link) <= _INLINE_LIMIT:
            return self._add(made, body, link)
        made.form = layout.FLAT_PLAIN
        self._out.align(BLOCK)
        made.value = self._out.end >> BLOCK_BITS
        self._out.append(link.ljust(aligned(len(link), BLOCK), b"\0"))
        return self._add(made, body, b"")

    def special(
        self, mode: int, uid: int, gid: int, mtime: int, device: int = 0, xattrs: Mapping[bytes, bytes] = _NO_XATTRS
    ) -> Target:
        """A device, a FIFO or a socket, as `mode` says. `device` is as stat(2) has it, of 32 bits."""
        if device >> 32:
            raise Unrepresentable(f"device number {device:#x}")
        return self._plain(mode, uid, gid, mtime, device, xattrs)

    def inode(self, target: Target) -> Inode:
        """The inode that a name that is no directory's means."""
        return inode.read(self._out.read, self._nid(target))

    def link_target(self, target: Target) -> bytes:
        """Where a symbolic link leads."""
        found = self.inode(target)
        at = found.tail if found.form == layout.FLAT_INLINE else found.value << BLOCK_BITS
        return self._out.read(at, found.size)

    def xattrs(self, found: Inode) -> dict[bytes, bytes]:
        area = self._shared.area
        body = self._out.read(found.body, found.xattr_size)
        return xattrs.decode(body, lambda at: bytes(area[at : at + xattrs.SHARED_SIZE_LIMIT]))

    def change(self, changed: Inode, xattrs: Mapping[bytes, bytes] | None = None) -> None:
        """Writes an inode read before, with other attributes: all names that mean it mean that. None keeps xattrs."""
        if xattrs is None:
            self._out.change(changed.nid << SLOT_BITS, changed.pack())
            return
        body = self._shared.body(xattrs)
        if len(body) == changed.xattr_size:
            self._out.change(changed.nid << SLOT_BITS, changed.pack() + body)
            return
        tail = self._out.read(changed.tail, changed.tail_size)
        if changed.form == layout.FLAT_INLINE and len(body) + len(tail) > _INLINE_LIMIT:
            changed.form = layout.FLAT_PLAIN
            self._out.align(BLOCK)
            changed.value = self._out.end >> BLOCK_BITS
            self._out.append(tail.ljust(BLOCK, b"\0"))
            tail = b""
        old = changed.nid
        self._count -= 1
        self._moved[old] = self._add(changed, body, tail) >> TYPE_BITS

    def _nid(self, target: Target) -> int:
        nid = target >> TYPE_BITS
        moved = self._moved
        while nid in moved:
            nid = moved[nid]
        return nid

    def _plain(self, mode: int, uid: int, gid: int, mtime: int, value: int, xattrs: Mapping[bytes, bytes]) -> Target:
        made = Inode(0, mode, uid, gid, mtime, 1, 0, layout.FLAT_PLAIN, value)
        return self._add(made, self._shared.body(xattrs) if xattrs else b"", b"")

    def _add(self, made: Inode, body: bytes, tail: bytes) -> Target:
        """Appends an inode; inline data does not cross a block."""
        if made.form == layout.FLAT_INLINE:
            size = layout.EXTENDED.size + len(body) + len(tail)
            if self._out.end % BLOCK + size > BLOCK:
                self._out.align(BLOCK)
        made.nid = self._out.end >> SLOT_BITS
        made.head = layout.EXTENDED.size
        made.xattr_size = len(body)
        gap = made.tail - made.body - len(body)
        self._out.append_slots(b"".join((made.pack(), body, bytes(gap), tail)))
        self._count += 1
        return made.nid << TYPE_BITS | made.file_type

    def finish(self, device_sizes: Sequence[int]) -> int:
        """Writes what is left, over devices of so many bytes; returns the size of the image. Raises Unrepresentable."""
        devices = device_blocks(device_sizes)
        out = self._out
        plan = _Plan(self.directories, self._shared, self._root, out.end)
        blocks = Output(self._fd, plan.end)
        for number in plan.order:
            self._directory(plan, number, blocks)
        out.align(BLOCK)
        xattrs_block = blocks.end >> BLOCK_BITS
        blocks.append(bytes(self._shared.area))
        blocks.align(BLOCK)
        out.flush()
        blocks.flush()
        superblock = Superblock(
            root=self._root,
            inodes=self._count + len(plan.order),
            blocks=blocks.end >> BLOCK_BITS,
            xattrs_block=xattrs_block,
            uuid=bytes(one ^ other for one, other in zip(out.digest, blocks.digest, strict=True)),
            devices=devices,
        )
        write_all(self._fd, bytes(superblock), 0)
        return blocks.end

    def _directory(self, plan: _Plan, number: int, blocks: Output) -> None:
        """Writes an inode, the end of its data behind it where it fits there, and the rest of the data to `blocks`."""
        table = self.directories
        body = plan.bodies.get(number, b"")
        first = blocks.end >> BLOCK_BITS
        *whole, last = directory.blocks(self._entries(plan, number))
        for block in whole:
            blocks.append(block)
        if inline := plan.is_inline[number]:
            tail = last
        else:
            tail = b""
            blocks.append(last.ljust(BLOCK, b"\0"))
        made = Inode(
            nid=plan.nids[number],
            mode=stat.S_IFDIR | table.modes[number],
            uid=table.uids[number],
            gid=table.gids[number],
            mtime=table.mtimes[number],
            links=2 + sum(target & TYPE_MASK == layout.DIRECTORY for target in table.items(number).values()),
            size=len(whole) * BLOCK + len(last),
            form=layout.FLAT_INLINE if inline else layout.FLAT_PLAIN,
            value=first,
            xattr_size=len(body),
            implied=bool(table.implied[number]),
        )
        data = made.pack() + body + tail
        at = made.nid << SLOT_BITS
        if number == ROOT:
            self._out.change(at, data)
            return
        self._out.append(bytes(at - self._out.end))
        self._out.append_slots(data)

    def _entries(self, plan: _Plan, number: int) -> list[tuple[bytes, int, int]]:
        nids, moved = plan.nids, self._moved
        items = self.directories.items(number)
        entries: list[tuple[bytes, int, int]] = []
        for name in self.directories.sorted(number):
            target = items.get(name)
            if target is None:
                where = number if name == b"." else self.directories.parents[number]
                entries.append((name, nids[where], layout.DIRECTORY))
                continue
            type, of = target & TYPE_MASK, target >> TYPE_BITS
            if type == layout.DIRECTORY:
                of = nids[of]
            elif of in moved:
                of = self._nid(target)
            entries.append((name, of, type))
        return entries


class _Plan:
    """Where the inodes of directories go. Their data's last piece lies inline where it fits into the inode's block."""

    def __init__(self, table: Directories, shared: SharedXattrs, root: int, start: int) -> None:
        self.order = table.reachable()
        self.nids = array("Q", bytes(8 * len(table)))
        self.is_inline = bytearray(len(table))
        self.bodies: dict[int, bytes] = {}
        at = start
        for number in self.order:
            found = table.xattrs.get(number)
            body = shared.body(found) if found else b""
            if body:
                self.bodies[number] = body
            needed = layout.EXTENDED.size + len(body)
            tail = directory.size(table.sorted(number)) % BLOCK
            if tail and needed + tail <= BLOCK:
                self.is_inline[number] = True
                needed += tail
            if number == ROOT:
                if needed > _ROOT_SIZE:
                    raise Unrepresentable(f"extended attributes of {len(body)} bytes at the root")
                self.nids[number] = root
                continue
            if self.is_inline[number] and at % BLOCK + needed > BLOCK:
                at = aligned(at, BLOCK)
            self.nids[number] = at >> SLOT_BITS
            at = aligned(at + needed, SLOT)
        self.end = aligned(at, BLOCK)
