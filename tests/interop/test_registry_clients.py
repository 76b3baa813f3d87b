"""Registries behind TLS, mirrors and passwords, by every client there is, and what a user is told where it fails."""

from __future__ import annotations

import base64
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from images_world import described as described_
from images_world import layout, named, small_image
from real_daemon import IMAGE, Daemon, end_leftovers
from real_registry import PASSWORD, USER, Certificate, Registry, serve, token_server
from transfer_world import layer_of

from orlop.core import digest as digests
from orlop.core import media

pytestmark = [
    pytest.mark.root,
    pytest.mark.ctr,
    pytest.mark.skipif(not shutil.which("docker-registry"), reason="needs docker-registry"),
]

NEWEST = os.environ.get("ORLOP_TEST_CTR", "")
_ORLOP = str(Path(sys.executable).parent / "orlop")
_NOBODY = "http://127.0.0.1:1"


@dataclass
class Hosts:
    """Registries that are known by a directory of `hosts.toml` alone, each under a name of its own."""

    directory: Path
    registries: dict[str, Registry]

    def add(self, name: str, text: str) -> None:
        (self.directory / name).mkdir(parents=True)
        (self.directory / name / "hosts.toml").write_text(text)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    work = tmp_path_factory.mktemp("registries")
    found = Hosts(work / "certs.d", {})
    certificate = Certificate.make(work)
    with ExitStack() as undo:
        tokens = undo.enter_context(token_server(work))
        plain = undo.enter_context(serve(work / "plain"))
        mirror = undo.enter_context(serve(work / "mirror", mirror_of=f"http://{plain.address}"))
        tls = undo.enter_context(serve(work / "tls", tls=certificate))
        basic = undo.enter_context(serve(work / "basic", tls=certificate, basic=True))
        token = undo.enter_context(serve(work / "token", tokens=tokens))
        ca = f'ca = "{certificate.certificate}"\n'
        for host, url, more in (
            ("tls.example", f"https://{tls.address}", ca),
            ("unknown-ca.example", f"https://{tls.address}", ""),
            ("basic.example", f"https://{basic.address}", ca),
            ("token.example", f"http://{token.address}", ""),
        ):
            # containerd 1.6 passes over a server that stands alone.
            found.add(host, f'server = "{url}"\n{more}[host."{url}"]\n{more}')
        pull = 'capabilities = ["pull", "resolve"]\n'
        found.add(
            "mirrored.example",
            f'server = "http://{plain.address}"\n[host."{_NOBODY}"]\n{pull}[host."http://{mirror.address}"]\n{pull}',
        )
        found.registries = {"mirror": mirror, "tls": tls, "plain": plain, "basic": basic, "token": token}
        yield found


class Program:
    """A client with the daemon and the hosts that it works with."""

    def __init__(self, daemon: Daemon, hosts: Hosts, home: Path) -> None:
        self.daemon, self.hosts, self.home = daemon, hosts, home

    def push(self, reference: str, password: str = "") -> subprocess.CompletedProcess[str]:
        return self._run("push", reference, password)

    def pull(self, reference: str, password: str = "") -> subprocess.CompletedProcess[str]:
        return self._run("pull", reference, password)

    def _run(self, verb: str, reference: str, password: str) -> subprocess.CompletedProcess[str]:
        raise NotImplementedError


class Ctr(Program):
    program = "ctr"

    def _run(self, verb: str, reference: str, password: str) -> subprocess.CompletedProcess[str]:
        user = ["--user", f"{USER}:{password}"] if password else []
        access = ["--hosts-dir", self.hosts.directory, *user]
        return self.daemon.ctr("images", verb, *access, reference, program=self.program, check=False)


class NewestCtr(Ctr):
    program = NEWEST


class Orlop(Program):
    def _run(self, verb: str, reference: str, password: str) -> subprocess.CompletedProcess[str]:
        auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
        auths = {reference.partition("/")[0]: {"auth": auth}} if password else {}
        (self.home / "config.json").write_text(json.dumps({"auths": auths}))
        command = [_ORLOP, "-a", self.daemon.address, verb, "--hosts-dir", self.hosts.directory, reference]
        environment = os.environ | {"DOCKER_CONFIG": str(self.home)}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


_newest = pytest.param(NewestCtr, id="newest-ctr", marks=pytest.mark.skipif(not NEWEST, reason="no ORLOP_TEST_CTR"))
EVERY = [pytest.param(Ctr, id="ctr"), _newest, pytest.param(Orlop, id="orlop")]
BY_DAEMON = [_newest, pytest.param(Orlop, id="orlop")]
"""Those that let the daemon fetch."""


@pytest.fixture
def program(request: pytest.FixtureRequest, daemon: Daemon, hosts: Hosts, tmp_path: Path) -> Program:
    made: Program = request.param(daemon, hosts, tmp_path)
    return made


def imported(daemon: Daemon, reference: str, folder: Path) -> str:
    """An image of that name which nobody else has; the digest of its layer."""
    layer = gzip.compress(layer_of("file", 3000), 1, mtime=0)
    image = small_image(layers=[layer])
    archive = folder / "image.tar"
    archive.write_bytes(layout(named(described_(image[0], media.OCI_MANIFEST), reference), image))
    daemon.ctr("images", "import", archive)
    return digests.of(layer)


def ok(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done


def told(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that failed has said."""
    assert done.returncode != 0, done
    return done.stderr


@pytest.mark.parametrize("program", EVERY, indirect=True)
@pytest.mark.parametrize(
    ("host", "password"),
    [("tls.example", ""), ("mirrored.example", ""), ("basic.example", PASSWORD), ("token.example", PASSWORD)],
)
def test_an_image_goes_to_a_registry_and_comes_back(
    program: Program, daemon: Daemon, hosts: Hosts, host: str, password: str, name: str, tmp_path: Path
) -> None:
    reference = f"{host}/team/{name}:1"
    layer = imported(daemon, reference, tmp_path)
    ok(program.push(reference, password))
    daemon.ctr("images", "rm", "--sync", reference)
    assert layer not in daemon.ctr("content", "ls", "-q").stdout
    ok(program.pull(reference, password))
    assert layer in daemon.ctr("content", "ls", "-q").stdout
    if host == "mirrored.example":
        # The one in front is down, and the next has fetched it itself.
        assert hosts.registries["mirror"].has(layer)
    daemon.ctr("images", "rm", "--sync", reference)


@pytest.mark.parametrize("program", BY_DAEMON, indirect=True)
def test_a_certificate_of_an_authority_that_nobody_knows_is_told(program: Program, hosts: Hosts) -> None:
    said = told(program.pull("unknown-ca.example/team/app:1"))
    assert "unknown-ca.example/team/app:1" in said
    assert f"https://{hosts.registries['tls'].address}/" in said
    assert "signed by an authority that is not trusted here (`ca` in hosts.toml adds one)" in said


@pytest.mark.parametrize("program", BY_DAEMON, indirect=True)
@pytest.mark.parametrize("host", ["basic.example", "token.example"])
def test_a_wrong_password_is_told_and_not_shown(
    program: Program, daemon: Daemon, hosts: Hosts, host: str, name: str, tmp_path: Path
) -> None:
    reference = f"{host}/team/{name}:1"
    imported(daemon, reference, tmp_path)
    for done in (program.push(reference, "not-this-one"), program.pull(reference, "not-this-one")):
        said = told(done)
        assert reference in said
        assert hosts.registries[host.partition(".")[0]].address in said
        assert "may require authorization" in said
        assert "password" in said
        assert "not-this-one" not in done.stdout + done.stderr + daemon.log()
    daemon.ctr("images", "rm", "--sync", reference)


@pytest.mark.parametrize("program", BY_DAEMON, indirect=True)
def test_a_name_that_no_host_knows_is_told(program: Program, hosts: Hosts) -> None:
    said = told(program.pull("tls.example/team/nothing:1"))
    assert f"tls.example/team/nothing:1: not found (asked {hosts.registries['tls'].address})" in said


@pytest.mark.parametrize("program", BY_DAEMON, indirect=True)
def test_hosts_that_are_all_down_are_each_told(program: Program, hosts: Hosts, name: str) -> None:
    hosts.add(f"{name}.example", f'server = "{_NOBODY}"\n[host."http://127.0.0.1:2"]\n')
    said = told(program.pull(f"{name}.example/team/app:1"))
    assert f"{name}.example/team/app:1" in said
    assert "http://127.0.0.1:1/" in said
    assert "http://127.0.0.1:2/" in said
    assert "Connection refused" in said


def test_a_login_reads_hosts_where_the_daemon_does(hosts: Hosts, tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="orlop-", dir="/tmp"))
    config = folder / "config.toml"
    config.write_text(
        f'version = 3\n[plugins."io.containerd.internal.v1.registries"]\nconfig_path = "{hosts.directory}"\n'
    )
    daemon = Daemon(folder, ["--config", str(config)])

    def orlop(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"DOCKER_CONFIG": str(tmp_path), "ORLOP_ADDRESS": daemon.address}
        return subprocess.run(
            [_ORLOP, *arguments], input=PASSWORD, capture_output=True, text=True, timeout=60, env=environment
        )

    try:
        daemon.start()
        imported(daemon, IMAGE, tmp_path)
        login = orlop("login", "-u", USER, "--password-stdin", "basic.example")
        assert login.stdout == f"Logged in to basic.example; kept in {tmp_path}/config.json\n", login
        ok(orlop("push", IMAGE, "basic.example/team/app:1"))
        ok(orlop("pull", "basic.example/team/app:1"))
        assert daemon.stop() == 0
        # Without a daemon the standard directories count.
        assert "127.0.0.1:1: Connection refused" in told(orlop("login", "-u", USER, "--password-stdin", "127.0.0.1:1"))
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.stop()
        end_leftovers(folder)
        shutil.rmtree(folder)
