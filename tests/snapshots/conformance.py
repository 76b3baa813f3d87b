"""What every snapshotter must do, whatever it keeps its files in and by whatever way it is reached.

Run over every driver, and over the store and the service above it, by `test_snapshots_conformance`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from pathlib import Path

import pytest
from subjects import Subject

from orlop.core.mount import Mount
from orlop.core.snapshot import Kind, SnapshotInfo, Snapshotter
from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from orlop.mounts.temporary import TemporaryMounts

LABELS = {"containerd.io/snapshot/x": "1"}


class Conformance:
    """Give it a fixture `subject` and a fixture `temporary`."""

    async def layer(
        self, driver: Snapshotter, temporary: TemporaryMounts, name: str, parent: str, **files: str
    ) -> None:
        mounts = await driver.prepare(f"make-{name}", parent)
        with temporary.mounted(mounts) as root:
            for path, text in files.items():
                Path(root, path).write_text(text)
        await driver.commit(name, f"make-{name}")

    async def test_a_chain_sees_the_content_of_all_its_parents(
        self, subject: Subject, temporary: TemporaryMounts
    ) -> None:
        async with subject.opened() as driver:
            await self.layer(driver, temporary, "a", "", one="1", two="old")
            await self.layer(driver, temporary, "b", "a", two="2", three="3")
            with temporary.mounted(await driver.prepare("c", "b")) as root:
                assert {name: Path(root, name).read_text() for name in os.listdir(root)} == {
                    "one": "1",
                    "two": "2",
                    "three": "3",
                }

    async def test_what_is_removed_renamed_and_made_again_stays_so(
        self, subject: Subject, temporary: TemporaryMounts
    ) -> None:
        async with subject.opened() as driver:
            with temporary.mounted(await driver.prepare("k1")) as root:
                Path(root, "d/e").mkdir(parents=True)
                Path(root, "d/e/old").touch()
                Path(root, "gone").touch()
                Path(root, "was").write_text("moved")
                os.link(Path(root, "was"), Path(root, "linked"))
            await driver.commit("base", "k1")
            with temporary.mounted(await driver.prepare("k2", "base")) as root:
                Path(root, "gone").unlink()
                Path(root, "was").rename(Path(root, "is"))
                Path(root, "d/e/old").unlink()
                Path(root, "d/e").rmdir()
                Path(root, "d/e").mkdir()
                Path(root, "d/e/new").touch()
            await driver.commit("top", "k2")
            with temporary.mounted(await driver.view("v", "top")) as root:
                assert sorted(os.listdir(root)) == ["d", "is", "linked"]
                assert os.listdir(Path(root, "d/e")) == ["new"]
                assert Path(root, "is").read_text() == "moved"

    async def test_metadata_of_files_survives(self, subject: Subject, temporary: TemporaryMounts) -> None:
        async with subject.opened() as driver:
            with temporary.mounted(await driver.prepare("k")) as root:
                file = Path(root, "file")
                file.write_text("x")
                os.link(file, Path(root, "same"))
                os.chown(file, 1000, 2000)
                file.chmod(0o4711)
                os.setxattr(file, "trusted.test", b"\x00\xff")
                os.utime(file, ns=(1, 1_000_000_001))
                os.mkfifo(Path(root, "fifo"), 0o600)
                os.mknod(Path(root, "null"), 0o020666, os.makedev(1, 3))
                Path(root, "way").symlink_to("/nowhere")
                os.truncate(file, 1 << 24)
                os.utime(file, ns=(1, 1_000_000_001))
                os.chmod(root, 0o555)
            await driver.commit("base", "k")
            with temporary.mounted(await driver.prepare("next", "base")) as root:
                status = os.lstat(Path(root, "file"))
                assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1000, 2000, 0o4711)
                assert status.st_mtime_ns == 1_000_000_001
                assert status.st_size == 1 << 24
                if subject.kind != "erofs":  # which counts the holes of a file in
                    assert status.st_blocks * 512 < 1 << 20
                assert os.lstat(Path(root, "same")).st_ino == status.st_ino
                assert os.getxattr(Path(root, "file"), "trusted.test") == b"\x00\xff"
                assert os.lstat(Path(root, "null")).st_rdev == os.makedev(1, 3)
                assert os.readlink(Path(root, "way")) == "/nowhere"
                assert Path(root, "fifo").is_fifo()

    async def test_a_view_cannot_be_written_and_holds_its_parent(
        self, subject: Subject, temporary: TemporaryMounts
    ) -> None:
        async with subject.opened() as driver:
            await self.layer(driver, temporary, "a", "", one="1")
            for parent in ("", "a"):
                with temporary.mounted(await driver.view(f"view-{parent}", parent)) as root:
                    with pytest.raises(OSError) as caught:
                        Path(root, "new").touch()
                    assert caught.value.errno == errno.EROFS
            with pytest.raises(FailedPrecondition, match=r"cannot remove snapshot with child: failed precondition$"):
                await driver.remove("a")
            with pytest.raises(FailedPrecondition, match=r'snapshot "view-a" is not active: failed precondition$'):
                await driver.commit("b", "view-a")

    async def test_stat_and_walk_show_kinds_parents_and_labels(self, subject: Subject) -> None:
        async with subject.opened() as driver:
            assert await driver.walk() == []
            await driver.prepare("k", "", LABELS)
            assert (await driver.stat("k")).kind is Kind.ACTIVE
            await driver.commit("base", "k")
            await driver.view("v", "base", LABELS)
            await driver.prepare("a", "base")
            found = {info.name: (info.kind, info.parent, dict(info.labels)) for info in await driver.walk()}
            assert found == {
                "base": (Kind.COMMITTED, "", {}),
                "v": (Kind.VIEW, "base", LABELS),
                "a": (Kind.ACTIVE, "base", {}),
            }
            assert (await driver.walk())[0].name == "base"
            assert {info.name: info for info in await driver.walk()} == {
                name: await driver.stat(name) for name in ("base", "v", "a")
            }

    async def test_mounts_are_those_of_creation_and_refused_when_committed(self, subject: Subject) -> None:
        async with subject.opened() as driver:
            made = await driver.prepare("k")
            assert await driver.mounts("k") == made
            await driver.commit("base", "k")
            with pytest.raises(FailedPrecondition, match="requested snapshot base not active or view"):
                await driver.mounts("base")
            with pytest.raises(NotFound):
                await driver.mounts("k")

    async def test_taken_names_and_missing_parents_are_refused(self, subject: Subject) -> None:
        async with subject.opened() as driver:
            await driver.prepare("k")
            await driver.commit("base", "k")
            await driver.prepare("k")
            for taken in ("k", "base"):
                with pytest.raises(AlreadyExists):
                    await driver.prepare(taken)
                with pytest.raises(AlreadyExists):
                    await driver.view(taken)
            with pytest.raises(AlreadyExists):
                await driver.commit("base", "k")
            with pytest.raises(NotFound):
                await driver.prepare("x", "missing")
            with pytest.raises(
                InvalidArgument, match=r'^failed to create snapshot: parent "k" is not committed snapshot'
            ):
                await driver.prepare("x", "k")
            with pytest.raises(NotFound):
                await driver.commit("y", "missing")
            with pytest.raises(NotFound):
                await driver.remove("missing")

    async def test_keys_of_any_form_make_no_paths(self, subject: Subject, tmp_path: Path) -> None:
        before = set(tmp_path.rglob("escaped*"))
        async with subject.opened() as driver:
            for key in ("../../escaped", "/escaped", "a\x00b", "x" * 2000, "\n", "é", "%41", " "):
                with pytest.raises(NotFound, match=re.escape(key)):
                    await driver.remove(key)
                await driver.prepare(key)
                assert (await driver.stat(key)).name == key
            assert set(tmp_path.rglob("escaped*")) == before

    async def test_updates_change_labels_alone(self, subject: Subject) -> None:
        async with subject.opened() as driver:
            await driver.prepare("k", "", {"a": "1", "b": "2"})

            async def labels(given: dict[str, str], *fields: str) -> dict[str, str]:
                await driver.update(SnapshotInfo("k", Kind.UNKNOWN, labels=given), fields)
                return dict((await driver.stat("k")).labels)

            before = await driver.stat("k")
            changed = await driver.update(SnapshotInfo("k", Kind.UNKNOWN, labels={"a": "3"}), ["labels.a"])
            assert changed == await driver.stat("k")
            assert (changed.labels, changed.kind) == ({"a": "3", "b": "2"}, Kind.ACTIVE)
            assert changed.created_at == before.updated_at <= changed.updated_at
            replaced = await driver.update(SnapshotInfo("k", Kind.UNKNOWN, labels={"c": "4"}), None)
            assert replaced.labels == {"c": "4"}
            assert await labels(LABELS) == LABELS
            assert await labels({"d": "5"}, "labels") == {"d": "5"}
            assert await labels({"d": "", "e": "6"}, "labels.d") == {}
            with pytest.raises(InvalidArgument, match=r'^cannot update "parent" field on snapshot "k"'):
                await labels({}, "parent")
            with pytest.raises(NotFound):
                await driver.update(SnapshotInfo("missing", Kind.UNKNOWN), None)

    async def test_usage_counts_what_is_written_once(self, subject: Subject, temporary: TemporaryMounts) -> None:
        async with subject.opened() as driver:
            with temporary.mounted(await driver.prepare("k")) as root:
                empty = await driver.usage("k")
                Path(root, "file").write_bytes(os.urandom(65536))
                os.link(Path(root, "file"), Path(root, "again"))
                used = await driver.usage("k")
            assert (used.size - empty.size, used.inodes - empty.inodes) == (65536, 1)
            await driver.commit("base", "k")
            committed = await driver.usage("base")
            assert committed.size >= 65536 if subject.keeps_layers else committed == used
            await driver.view("v", "base")
            assert (await driver.usage("v")).size == 0

    async def test_removal_leaves_no_record_and_cleanup_frees_the_disk(
        self, subject: Subject, temporary: TemporaryMounts
    ) -> None:
        async with subject.opened() as driver:
            await self.layer(driver, temporary, "a", "", one="1")
            await driver.remove("a")
            with pytest.raises(NotFound):
                await driver.stat("a")
            await driver.cleanup()
            assert list(subject.directories.iterdir()) == []

    async def test_an_active_without_parent_is_rebased_by_commit(self, subject: Subject) -> None:
        async with subject.opened() as driver:
            await driver.prepare("k1")
            await driver.commit("base", "k1")
            await driver.prepare("k2")
            await driver.commit("top", "k2", parent="base")
            assert (await driver.stat("top")).parent == "base"
            await driver.prepare("k3")
            with pytest.raises(NotFound):
                await driver.commit("other", "k3", parent="missing")

    async def test_of_many_calls_for_one_name_one_wins(self, subject: Subject) -> None:
        async with subject.opened() as driver:
            made = await asyncio.gather(*(driver.prepare("same") for _ in range(6)), return_exceptions=True)
            assert [type(each) for each in made if not isinstance(each, list)] == [AlreadyExists] * 5
            keys = ["same", *(f"k{number}" for number in range(5))]
            for key in keys[1:]:
                await driver.prepare(key)
            done = await asyncio.gather(*(driver.commit("name", key) for key in keys), return_exceptions=True)
            lost = [key for key, answer in zip(keys, done, strict=True) if isinstance(answer, AlreadyExists)]
            assert len(lost) == 5
            assert {info.name for info in await driver.walk()} == {"name", *lost}
            for key in lost:
                await driver.remove(key)

    async def test_closing_twice_is_safe(self, subject: Subject) -> None:
        async with subject.opened() as driver:
            await driver.close()
            await driver.close()


class DeepConformance:
    """The check that takes long, and that concerns the driver alone."""

    async def test_128_layers_deep_mount(self, subject: Subject, temporary: TemporaryMounts) -> None:
        async with subject.opened() as driver:
            parent = ""
            for number in range(128):
                mounts = await driver.prepare(f"k{number}", parent)
                if number % 16 == 0:
                    with temporary.mounted(mounts) as root:
                        Path(root, f"f{number}").touch()
                parent = f"layer{number}"
                await driver.commit(parent, f"k{number}")
            with temporary.mounted(await driver.prepare("top", parent)) as root:
                assert len(os.listdir(root)) == 8
                Path(root, "new").touch()


def bind_options(mounts: list[Mount]) -> tuple[str, ...]:
    (mount,) = mounts
    assert mount.type == "bind"
    return mount.options
