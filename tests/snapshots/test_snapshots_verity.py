"""fs-verity, with a kernel that is made up: the one that tests run on has none (CONFIG_FS_VERITY)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

import pytest
from layer_world import archive, layered

from orlop.mounts.mount import unmount_all
from orlop.mounts.temporary import TemporaryMounts
from orlop.snapshots import probe, verity

ENABLE = 1 << 30 | 128 << 16 | ord("f") << 8 | 133
"""_IOW('f', 133, struct fsverity_enable_arg) of linux/fsverity.h."""


class Kernel:
    """Answers the request; notes which files were sealed."""

    def __init__(self, error: int = 0) -> None:
        self.error = error
        self.sealed: list[str] = []

    def ioctl(self, fd: int, request: int, argument: bytes) -> int:
        path = os.readlink(f"/proc/self/fd/{fd}")
        assert request == ENABLE
        version, algorithm, block, salt_size, salt, signature_size, _, signature = struct.unpack_from(
            "=IIIIQIIQ", argument
        )
        assert (version, algorithm, block, len(argument)) == (1, 1, 4096, 128)
        assert not any((salt_size, salt, signature_size, signature, *argument[40:]))
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        if _is_written(path):
            raise OSError(errno.ETXTBSY, os.strerror(errno.ETXTBSY))
        self.sealed.append(path)
        return 0


def _is_written(path: str) -> bool:
    """Whether this process has the file open for writing: the kernel seals none that is."""
    for fd in os.listdir("/proc/self/fd"):
        try:
            found = os.readlink(f"/proc/self/fd/{fd}")
            mode = fcntl.fcntl(int(fd), fcntl.F_GETFL) & os.O_ACCMODE
        except OSError:
            continue
        if found == path and mode != os.O_RDONLY:
            return True
    return False


@pytest.mark.parametrize(
    ("error", "sealed"),
    [(0, True), (errno.EEXIST, True), (errno.ENOTTY, False), (errno.EOPNOTSUPP, False), (errno.ENOPKG, False)],
)
def test_what_the_kernel_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, sealed: bool) -> None:
    monkeypatch.setattr(fcntl, "ioctl", Kernel(error).ioctl)
    (tmp_path / "file").write_bytes(b"x")
    assert verity.enable(tmp_path / "file") is sealed


def test_a_full_disk_is_no_file_system_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", Kernel(errno.ENOSPC).ioctl)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OSError, match="No space left"):
        verity.enable(tmp_path / "file")


@pytest.mark.root
async def test_tar_and_index_of_a_layer_are_sealed_when_they_are_whole(
    tmp_path: Path, temporary: TemporaryMounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    if refusal := probe.refusal(tmp_path):
        pytest.skip(refusal)
    kernel = Kernel()
    monkeypatch.setattr(fcntl, "ioctl", kernel.ioctl)
    assert probe.has_verity(tmp_path)
    with layered(tmp_path / "world", temporary) as world:
        kernel.sealed.clear()
        await world.layer("base", "", archive({"one": "1"}))
        assert [os.path.basename(path) for path in kernel.sealed] == ["tar", "index"]
        with temporary.mounted(await world.driver.view("v", "base")) as root:
            assert os.listdir(root) == ["one"]
    unmount_all(tmp_path)
