from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from orlop.errors import AlreadyExists, InvalidArgument
from orlop.runtime.bundle import Bootstrap, Bundles


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_bundle_has_the_files_and_modes_of_the_contract(tmp_path: Path) -> None:
    bundle = Bundles(tmp_path / "state", tmp_path / "root").create("ns", "id", b'{ "a" : 1 }')
    assert (bundle.path / "config.json").read_bytes() == b'{ "a" : 1 }'
    assert [mode(path) for path in (bundle.path, bundle.rootfs, bundle.work, bundle.path.parent)] == [
        0o700,
        0o711,
        0o711,
        0o711,
    ]
    assert stat.S_ISFIFO(bundle.log.lstat().st_mode)
    assert (bundle.path / "work").readlink() == bundle.work


@pytest.mark.root
def test_a_bundle_with_mapped_groups_belongs_to_the_hosts_group(tmp_path: Path) -> None:
    spec = {"linux": {"gidMappings": [{"containerID": 0, "hostID": 70000, "size": 10}]}}
    bundle = Bundles(tmp_path / "state", tmp_path / "root").create("ns", "id", json.dumps(spec).encode())
    assert (mode(bundle.path), bundle.path.stat().st_gid) == (0o710, 70000)


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "../x", ".hidden", "a" * 77])
def test_names_that_are_no_identifiers_never_become_paths(tmp_path: Path, name: str) -> None:
    bundles = Bundles(tmp_path / "state", tmp_path / "root")
    with pytest.raises(InvalidArgument):
        bundles.create("ns", name, None)
    with pytest.raises(InvalidArgument):
        bundles.create(name, "id", None)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_made_once_and_removed_without_a_trace(tmp_path: Path) -> None:
    bundles = Bundles(tmp_path / "state", tmp_path / "root")
    bundle = bundles.create("ns", "id", b"{}")
    with pytest.raises(AlreadyExists):
        bundles.create("ns", "id", b"{}")
    bundle.remove()
    bundle.remove()
    assert [*(tmp_path / "state").iterdir(), *(tmp_path / "root").iterdir()] == []


def test_a_link_in_a_bundle_is_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").touch()
    bundle = Bundles(tmp_path / "state", tmp_path / "root").create("ns", "id", None)
    os.symlink(outside, bundle.path / "link")
    bundle.remove()
    assert (outside / "keep").exists()


def test_what_a_shim_answered_is_read_back(tmp_path: Path) -> None:
    bundle = Bundles(tmp_path / "state", tmp_path / "root").create("ns", "id", None)
    assert bundle.bootstrap() is None
    (bundle.path / "address").write_text("unix:///old")
    assert bundle.bootstrap() == Bootstrap(2, "unix:///old")
    bundle.write_bootstrap(Bootstrap(3, "unix:///s"), "/bin/shim")
    assert bundle.bootstrap() == Bootstrap(3, "unix:///s", "ttrpc")
    assert bundle.binary() == "/bin/shim"
    assert json.loads((bundle.path / "bootstrap.json").read_bytes()) == {
        "version": 3,
        "address": "unix:///s",
        "protocol": "ttrpc",
    }


def test_leftovers_and_empty_directories_go_when_bundles_are_listed(tmp_path: Path) -> None:
    bundles = Bundles(tmp_path / "state", tmp_path / "root")
    bundles.create("ns", "id", None)
    (tmp_path / "state/ns/.old").mkdir()
    (tmp_path / "state/ns/empty").mkdir()
    (tmp_path / "root/ns/gone").mkdir()
    assert [bundle.id for bundle in bundles.walk()] == ["id"]
    bundles.remove_stale_work({("ns", "id")})
    assert sorted(path.name for path in tmp_path.glob("*/ns/*")) == ["id", "id"]
