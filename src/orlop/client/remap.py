"""Root file systems of containers with a user namespace: their files belong to the users that the mapping says.

Where the snapshotter can, it mounts them so (id-mapped mounts, nothing is copied); else a copy of the image's files is
made, once for each mapping, with its owners changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

from orlop.client.client import Client
from orlop.core.lease import Resource
from orlop.core.mount import Mount
from orlop.core.scope import Scope
from orlop.errors import AlreadyExists, FailedPrecondition, NotFound
from orlop.mounts.temporary import TemporaryMounts
from orlop.oci.namespaces import IdMapping, Namespaces, to_host

UID_LABEL = "containerd.io/snapshot/uidmapping"
GID_LABEL = "containerd.io/snapshot/gidmapping"

_CAPABILITY = "security.capability"
_REVISION_3, _REVISION_MASK = 0x03000000, 0xFF000000


async def prepare(
    client: Client, scope: Scope, snapshotter: str, key: str, parent: str, namespaces: Namespaces
) -> list[Mount]:
    """The active snapshot `key` on `parent`, for a container of these namespaces. Raises AlreadyExists."""
    uids, gids = namespaces.uid_mappings, namespaces.gid_mappings
    if not namespaces.maps_ids:
        return await client.snapshots.prepare(scope, snapshotter, key, parent)
    labels = {UID_LABEL: ",".join(map(str, uids)), GID_LABEL: ",".join(map(str, gids))}
    capabilities = await _capabilities(client, snapshotter)
    if "remap-ids" not in capabilities:
        if "only-remap-ids" in capabilities:
            raise FailedPrecondition(
                f'snapshotter "{snapshotter}" cannot mount with mapped ids on this host, '
                "and may not copy (its option slow_chown)"
            )
        parent = await _copied(client, scope, snapshotter, parent, uids, gids)
    return await client.snapshots.prepare(scope, snapshotter, key, parent, labels)


async def _capabilities(client: Client, snapshotter: str) -> Sequence[str]:
    plugins = await client.introspection.plugins([f"type==io.containerd.snapshotter.v1,id=={snapshotter}"])
    return [capability for plugin in plugins for capability in plugin.capabilities]


async def _copied(
    client: Client, scope: Scope, snapshotter: str, parent: str, uids: Sequence[IdMapping], gids: Sequence[IdMapping]
) -> str:
    """The committed snapshot that has the files of `parent` with their owners mapped; made where it is missing."""
    mapping = f"{','.join(map(str, uids))} {','.join(map(str, gids))}"
    name = f"{parent}-{hashlib.sha256(mapping.encode()).hexdigest()[:16]}"
    if scope.lease:  # one that is there already may else be collected before it is used
        await client.leases.add_resource(scope, scope.lease, Resource(f"snapshots/{snapshotter}", name))
    try:
        await client.snapshots.stat(scope, snapshotter, name)
    except NotFound:
        pass
    else:
        return name
    key = f"{name}-remap-{os.urandom(6).hex()}"
    mounts = await client.snapshots.prepare(scope, snapshotter, key, parent)
    try:
        await asyncio.to_thread(_change_owners, mounts, uids, gids)
        await client.snapshots.commit(scope, snapshotter, name, key)
    except AlreadyExists:  # somebody else was faster
        await client.snapshots.remove(scope, snapshotter, key)
    except BaseException:
        await client.snapshots.remove(scope, snapshotter, key)
        raise
    return name


def _change_owners(mounts: Sequence[Mount], uids: Sequence[IdMapping], gids: Sequence[IdMapping]) -> None:
    with tempfile.TemporaryDirectory(prefix="orlop-remap-") as folder:
        temporary = TemporaryMounts(Path(folder))
        try:
            with temporary.mounted(mounts) as root:
                for _, directories, files, inside in os.fwalk(root, follow_symlinks=False):
                    for name in (*directories, *files):
                        _change_owner(inside, name, uids, gids)
                handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    _change_owner(handle, ".", uids, gids)
                finally:
                    os.close(handle)
        finally:
            temporary.close()


def _change_owner(directory: int, name: str, uids: Sequence[IdMapping], gids: Sequence[IdMapping]) -> None:
    """chown(2) takes set-id bits and file capabilities away: they are put back."""
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    path = f"/proc/self/fd/{directory}/{name}"
    kept = _file_capability(path) if stat.S_ISREG(status.st_mode) else b""
    os.chown(name, to_host(status.st_uid, uids), to_host(status.st_gid, gids), dir_fd=directory, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode) and status.st_mode & (stat.S_ISUID | stat.S_ISGID):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=directory)
    if kept:
        os.setxattr(path, _CAPABILITY, _of_root(kept, to_host(0, uids)), follow_symlinks=False)


def _file_capability(path: str) -> bytes:
    try:
        return os.getxattr(path, _CAPABILITY, follow_symlinks=False)
    except OSError:  # it has none, or the file system knows none
        return b""


def _of_root(value: bytes, root: int) -> bytes:
    """A file capability (linux/capability.h, vfs_ns_cap_data) that holds in the namespace whose root is uid `root`."""
    (magic,) = struct.unpack_from("<I", value)
    magic = magic & ~_REVISION_MASK | _REVISION_3
    return struct.pack("<I", magic) + value[4:20] + struct.pack("<I", root)
