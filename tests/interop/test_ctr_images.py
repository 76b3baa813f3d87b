"""Images, content, snapshots, leases and namespaces, as the real `ctr` asks for them."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path

import pytest
from real_daemon import IMAGE, Archives, Daemon

pytestmark = [pytest.mark.root, pytest.mark.ctr]


def digests(daemon: Daemon) -> list[str]:
    return daemon.ctr("content", "ls", "-q").stdout.split()


def test_version_names_client_and_server(daemon: Daemon) -> None:
    assert "Server:" in daemon.ctr("version").stdout


def test_plugins_are_listed_with_details_and_none_has_failed(daemon: Daemon) -> None:
    listed = daemon.ctr("plugins", "ls").stdout
    assert "io.containerd.snapshotter.v1" in listed
    assert "error" not in listed.split()
    assert "Exports" in daemon.ctr("plugins", "ls", "-d").stdout


def test_namespaces_are_created_labelled_listed_and_removed(daemon: Daemon, name: str) -> None:
    daemon.ctr("namespaces", "create", name, "a=b")
    assert f"{name}" in daemon.ctr("namespaces", "ls", "-q").stdout.split()
    daemon.ctr("namespaces", "label", name, "c=d", "a=")
    line = next(line for line in daemon.ctr("namespaces", "ls").stdout.splitlines() if line.startswith(name))
    assert line.split()[1:] == ["c=d"]
    again = daemon.ctr("namespaces", "create", name, check=False)
    assert again.returncode == 1
    assert f'namespace "{name}": already exists' in again.stderr
    daemon.ctr("namespaces", "rm", name)
    gone = daemon.ctr("namespaces", "rm", name, check=False)
    assert name not in daemon.ctr("namespaces", "ls", "-q").stdout.split()
    assert gone.returncode in (0, 1)


def test_a_namespace_with_objects_is_not_removed(daemon: Daemon) -> None:
    refused = daemon.ctr("namespaces", "rm", "default", check=False)
    assert refused.returncode == 1
    assert 'namespace "default" must be empty, but it still has images, blobs' in refused.stderr


def test_a_docker_archive_is_imported_under_its_normalised_name(daemon: Daemon, archives: Archives) -> None:
    daemon.ctr("images", "import", archives.docker)
    assert "docker.io/library/busybox:docker" in daemon.ctr("images", "ls", "-q").stdout.split()
    assert "complete" in daemon.ctr("images", "check", "name==docker.io/library/busybox:docker").stdout
    daemon.ctr("images", "rm", "--sync", "docker.io/library/busybox:docker")


def test_an_imported_image_is_complete_unpacked_and_listed(daemon: Daemon) -> None:
    row = next(line for line in daemon.ctr("images", "ls").stdout.splitlines() if line.startswith(IMAGE))
    assert "application/vnd.oci.image" in row
    assert "linux/" in row
    checked = daemon.ctr("images", "check", f"name=={IMAGE}").stdout
    assert "complete" in checked
    assert checked.rstrip().endswith("true")


def test_an_image_is_tagged_labelled_and_removed(daemon: Daemon, name: str) -> None:
    tag = f"example.org/{name}:1"
    daemon.ctr("images", "tag", IMAGE, tag)
    refused = daemon.ctr("images", "tag", IMAGE, tag, check=False)
    assert f'image "{tag}": already exists' in refused.stderr
    daemon.ctr("images", "tag", "--force", IMAGE, tag)
    daemon.ctr("images", "label", tag, "key=value")
    assert "key=value" in daemon.ctr("images", "ls", f"name=={tag}").stdout
    daemon.ctr("images", "label", "--replace-all", tag, "other=value")
    assert "key=value" not in daemon.ctr("images", "ls", f"name=={tag}").stdout
    daemon.ctr("images", "rm", tag)
    assert tag not in daemon.ctr("images", "ls", "-q").stdout.split()
    missing = daemon.ctr("images", "rm", tag, check=False)
    assert "not found" in missing.stderr


def test_an_image_is_mounted_and_unmounted(daemon: Daemon, tmp_path: Path) -> None:
    target = tmp_path / "mnt"
    target.mkdir()
    daemon.ctr("images", "mount", IMAGE, target)
    assert (target / "bin/busybox").exists()
    with pytest.raises(OSError, match="Read-only"):
        (target / "x").write_text("")
    daemon.ctr("images", "unmount", "--rm", target)
    assert not list(target.iterdir())


def test_an_export_imports_again_to_the_same_digests(daemon: Daemon, tmp_path: Path, name: str) -> None:
    archive = tmp_path / "export.tar"
    daemon.ctr("images", "export", archive, IMAGE)
    with tarfile.open(archive) as tar:
        index = json.load(tar.extractfile("index.json"))  # type: ignore[arg-type]
        blobs = [member for member in tar if member.name.startswith("blobs/sha256/") and member.isfile()]
        for member in blobs:
            data = tar.extractfile(member).read()  # type: ignore[union-attr]
            assert hashlib.sha256(data).hexdigest() == Path(member.name).name
    other = Daemon(daemon.work, namespace=name)
    other.ctr("images", "import", archive)
    assert index["manifests"][0]["digest"] in other.ctr("images", "ls").stdout
    other.ctr("images", "rm", "--sync", IMAGE)
    assert not digests(other)
    assert not other.ctr("snapshots", "ls").stdout.splitlines()[1:]
    other.ctr("namespaces", "rm", name)


def test_a_corrupt_archive_is_refused_and_leaves_no_image(daemon: Daemon, archives: Archives, tmp_path: Path) -> None:
    data = archives.oci.read_bytes()
    for damaged in (data[:5000], b"not a tar at all" * 1000, data.replace(b'"layers"', b'"lxyers"')):
        archive = tmp_path / "damaged.tar"
        archive.write_bytes(damaged)
        other = Daemon(daemon.work, namespace="damaged")
        assert other.ctr("images", "import", archive, check=False).returncode != 0
        assert not other.ctr("images", "ls", "-q").stdout.split()


def test_content_is_ingested_read_labelled_edited_and_removed(daemon: Daemon, tmp_path: Path, name: str) -> None:
    data = os.urandom(3 << 20)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    daemon.ctr("leases", "create", "--id", name)
    # A collection that another test has caused may come before the label that keeps the blob.
    for _ in range(10):
        daemon.ctr("content", "ingest", f"--expected-digest={digest}", name, stdin=data)
        if not daemon.ctr("content", "label", digest, "containerd.io/gc.root=test", "a=b", check=False).returncode:
            break
    assert "a=b" in next(line for line in daemon.ctr("content", "ls").stdout.splitlines() if digest in line)
    got = tmp_path / "got"
    with got.open("wb") as out:
        import subprocess

        subprocess.run(["ctr", "-a", daemon.address, "content", "get", digest], stdout=out, check=True)
    assert got.read_bytes() == data
    daemon.ctr("content", "rm", digest)
    assert digest not in digests(daemon)
    missing = daemon.ctr("content", "get", digest, check=False)
    assert "not found" in missing.stderr


def test_content_with_another_digest_or_size_is_refused(daemon: Daemon, name: str) -> None:
    wrong = daemon.ctr("content", "ingest", f"--expected-digest=sha256:{'0' * 64}", name, stdin=b"x", check=False)
    assert "unexpected commit digest" in wrong.stderr
    # The client itself counts what is too little; the ingest stays, and shows.
    wrong = daemon.ctr("content", "ingest", "--expected-size=5", f"{name}-size", stdin=b"x", check=False)
    assert wrong.returncode == 1
    assert name in daemon.ctr("content", "active").stdout


def test_content_is_edited_by_an_editor(daemon: Daemon, tmp_path: Path, name: str) -> None:
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\necho more >> $1\n")
    editor.chmod(0o755)
    digest = f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
    # A collection that another test has caused may come before the label that keeps the blob.
    for _ in range(10):
        daemon.ctr("content", "ingest", name, stdin=name.encode())
        if not daemon.ctr("content", "label", digest, "containerd.io/gc.root=test", check=False).returncode:
            break
    edited = daemon.ctr("content", "edit", "--editor", editor, digest).stdout.strip()
    assert edited == f"sha256:{hashlib.sha256(name.encode() + b'more' + bytes([10])).hexdigest()}"
    daemon.ctr("content", "rm", digest)


def test_pruning_references_drops_the_layers_of_an_unpacked_image(
    daemon: Daemon, archives: Archives, name: str
) -> None:
    other = Daemon(daemon.work, namespace=name)
    other.ctr("images", "import", archives.oci)
    other.ctr("content", "prune", "references")
    assert len(digests(other)) == 2  # manifest and config
    other.ctr("images", "rm", "--sync", IMAGE)
    other.ctr("namespaces", "rm", name)


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_snapshots_go_through_every_verb(daemon: Daemon, tmp_path: Path, name: str, snapshotter: str) -> None:
    def snapshots(*arguments: str | Path, check: bool = True) -> str:
        return daemon.ctr("snapshots", "--snapshotter", snapshotter, *arguments, check=check).stdout

    base, layer, active, view = (f"{name}-{kind}" for kind in ("base", "layer", "active", "view"))
    target = tmp_path / "mnt"
    target.mkdir()

    def write(key: str, file: str, text: str) -> None:
        command = snapshots("mounts", target, key).strip()
        assert os.system(command) == 0
        try:
            (target / file).write_text(text)
        finally:
            assert os.system(f"umount {target}") == 0

    snapshots("prepare", active)
    write(active, "one", "1")
    snapshots("commit", base, active)
    snapshots("prepare", active, base)
    write(active, "two", "22")
    snapshots("commit", layer, active)
    assert '"Kind": "Committed"' in snapshots("info", layer)
    assert f'"Parent": "{base}"' in snapshots("info", layer)
    snapshots("label", layer, "key=value")
    assert '"key": "value"' in snapshots("info", layer)
    listed = {line.split()[0]: line.split()[-1] for line in snapshots("ls").splitlines()[1:]}
    assert listed[base] == listed[layer] == "Committed"
    assert layer in snapshots("tree")
    assert layer in snapshots("usage", layer)
    for _ in range(10):  # nothing keeps a view from the next collection but such a label
        snapshots("view", view, layer)
        if view in snapshots("label", view, "containerd.io/gc.root=test", check=False) + snapshots("ls"):
            break
    command = snapshots("mounts", target, view).strip()
    assert os.system(command) == 0
    try:
        assert (target / "one").read_text() + (target / "two").read_text() == "122"
        with pytest.raises(OSError, match="Read-only"):
            (target / "three").write_text("")
    finally:
        os.system(f"umount {target}")
    raw = daemon.ctr("snapshots", "--snapshotter", snapshotter, "diff", base, layer)
    assert raw.stdout
    refused = daemon.ctr("snapshots", "--snapshotter", snapshotter, "rm", base, check=False)
    assert "cannot remove snapshot with child: failed precondition" in refused.stderr
    snapshots("rm", view, check=False)
    snapshots("rm", layer)
    snapshots("rm", base)
    assert base not in snapshots("ls")


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_an_image_is_unpacked_by_its_manifest(daemon: Daemon, archives: Archives, name: str, snapshotter: str) -> None:
    other = Daemon(daemon.work, namespace=name)
    other.ctr("images", "import", "--no-unpack", archives.oci)
    digest = next(line.split()[2] for line in other.ctr("images", "ls").stdout.splitlines() if IMAGE in line)
    # This verb of the client asks for the namespace's snapshotter, whatever the flag says.
    other.ctr("namespaces", "label", name, f"containerd.io/defaults/snapshotter={snapshotter}")
    other.ctr("snapshots", "unpack", digest)
    assert "Committed" in other.ctr("snapshots", "--snapshotter", snapshotter, "ls").stdout
    other.ctr("images", "rm", "--sync", IMAGE)
    other.ctr("namespaces", "rm", name)


def test_leases_are_created_listed_and_removed(daemon: Daemon, name: str) -> None:
    daemon.ctr("leases", "create", "--id", name, "a=b")
    row = next(line for line in daemon.ctr("leases", "ls").stdout.splitlines() if line.startswith(name))
    assert "a=b" in row
    assert "containerd.io/gc.expire=" in row
    again = daemon.ctr("leases", "create", "--id", name, check=False)
    assert f'lease "{name}": already exists' in again.stderr
    daemon.ctr("leases", "rm", "--sync", name)
    assert name not in daemon.ctr("leases", "ls", "-q").stdout.split()
    made_up = daemon.ctr("leases", "create").stdout.strip()
    assert made_up in daemon.ctr("leases", "ls", "-q").stdout.split()
    daemon.ctr("leases", "rm", made_up)
