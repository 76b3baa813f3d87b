"""Makes a small OCI image from the host's static busybox, with nothing but the standard library.

python3 busybox_image.py OUT.tar                 an OCI layout
python3 busybox_image.py --docker OUT.tar        what `docker save` writes
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

NAME = "docker.io/library/busybox:latest"

PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nuser:x:1000:1000::/home/user:/bin/sh\n"
)
GROUP = "root:x:0:\ndaemon:x:1:\nextra:x:2000:user\nuser:x:1000:\n"


def busybox() -> Path:
    """The static busybox of this host (Debian package busybox-static)."""
    for path in ("/bin/busybox", "/usr/bin/busybox"):
        if Path(path).exists():
            return Path(path)
    found = shutil.which("busybox")
    if found is None:
        raise SystemExit("no busybox here: install the package busybox-static")
    return Path(found)


def layer() -> bytes:
    """The tar of a root file system: busybox with a link for each of its applets, and the files of users."""
    out = io.BytesIO()
    program = busybox()
    applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, kind: bytes, mode: int, data: bytes = b"", link: str = "") -> None:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.linkname, entry.size = kind, mode, link, len(data)
            tar.addfile(entry, io.BytesIO(data))

        for name in ("bin", "dev", "etc", "home", "home/user", "proc", "root", "sys", "usr", "usr/bin", "var"):
            add(name, tarfile.DIRTYPE, 0o755)
        add("tmp", tarfile.DIRTYPE, 0o1777)
        add("bin/busybox", tarfile.REGTYPE, 0o755, program.read_bytes())
        for applet in sorted(set(applets) - {"busybox"}):
            add(f"bin/{applet}", tarfile.SYMTYPE, 0o777, link="busybox")
        add("etc/passwd", tarfile.REGTYPE, 0o644, PASSWD.encode())
        add("etc/group", tarfile.REGTYPE, 0o644, GROUP.encode())
    return out.getvalue()


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


def _json(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True).encode()


def _config(diff_id: str, labels: dict[str, str] | None = None) -> bytes:
    return _json(
        {
            "architecture": _architecture(),
            "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": {"Env": ["PATH=/bin:/usr/bin"], "Cmd": ["/bin/sh"], "WorkingDir": "/", "Labels": labels or {}},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": "2026-01-01T00:00:00Z", "created_by": "busybox_image.py"}],
        }
    )


def _archive(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def oci_layout(name: str = NAME, labels: dict[str, str] | None = None) -> bytes:
    """An archive in the OCI image layout, its one image named `name` and labelled with `labels`."""
    tar = layer()
    packed = gzip.compress(tar, compresslevel=6, mtime=0)
    config = _config(_digest(tar), labels)
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": _digest(config),
                "size": len(config),
            },
            "layers": [
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": _digest(packed),
                    "size": len(packed),
                }
            ],
        }
    )
    index = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [
                {
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": _digest(manifest),
                    "size": len(manifest),
                    "platform": {"architecture": _architecture(), "os": "linux"},
                    "annotations": {
                        "io.containerd.image.name": name,
                        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
                    },
                }
            ],
        }
    )
    blobs = {f"blobs/sha256/{_digest(data)[7:]}": data for data in (packed, config, manifest)}
    return _archive({"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": index} | blobs)


def docker_save(name: str = "busybox:docker") -> bytes:
    """An archive as `docker save` wrote it before it wrote OCI layouts too."""
    tar = layer()
    config = _config(_digest(tar))
    config_name = f"{_digest(config)[7:]}.json"
    manifest = _json([{"Config": config_name, "RepoTags": [name], "Layers": ["layer/layer.tar"]}])
    return _archive({"layer/layer.tar": tar, config_name: config, "manifest.json": manifest})


def main() -> None:
    arguments = sys.argv[1:]
    docker = "--docker" in arguments
    arguments = [argument for argument in arguments if argument != "--docker"]
    if len(arguments) != 1:
        raise SystemExit(__doc__)
    Path(arguments[0]).write_bytes(docker_save() if docker else oci_layout())


if __name__ == "__main__":
    main()
