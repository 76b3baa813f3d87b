"""A daemon of its own for each test process, and the real `ctr` pointed at it."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import busybox_image
import pytest
from real_daemon import IMAGE, Archives, Daemon, end_leftovers

_numbers = itertools.count()


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Archives:
    """The busybox image as an OCI layout and as a docker-save archive."""
    folder = tmp_path_factory.mktemp("archives")
    found = Archives(folder / "oci.tar", folder / "docker.tar")
    found.oci.write_bytes(busybox_image.oci_layout())
    found.docker.write_bytes(busybox_image.docker_save())
    return found


@pytest.fixture(scope="session")
def make_daemon() -> Iterator[Callable[..., Daemon]]:
    """Makes daemons that end with the tests, their containers and mounts with them."""
    made: list[Daemon] = []

    def make(*arguments: str) -> Daemon:
        # A short path: a socket's may have 104 characters. Session directories of pytest are longer.
        daemon = Daemon(Path(tempfile.mkdtemp(prefix="orlop-", dir="/tmp")), list(arguments))
        made.append(daemon)
        daemon.start()
        return daemon

    yield make
    for daemon in made:
        if daemon.process is not None and daemon.process.poll() is not None:
            daemon.start()
        daemon.remove_everything()
        daemon.stop()
        end_leftovers(daemon.work)
        shutil.rmtree(daemon.work, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_daemon(make_daemon: Callable[..., Daemon], archives: Archives) -> Daemon:
    """One daemon for all tests of this process, with the busybox image unpacked."""
    daemon = make_daemon()
    daemon.ctr("images", "import", archives.oci)
    return daemon


@pytest.fixture
def daemon(shared_daemon: Daemon) -> Daemon:
    return shared_daemon


@pytest.fixture
def name() -> str:
    """A container id that no other test of this host uses."""
    return f"t{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def container(daemon: Daemon, name: str) -> Iterator[str]:
    """A running container that sleeps."""
    daemon.ctr("run", "-d", IMAGE, name, "sleep", "600")
    yield name
    daemon.ctr("tasks", "rm", "-f", name, check=False)
    daemon.ctr("containers", "rm", name, check=False)
