"""A real `docker-registry` for tests: plain or with TLS, open or with basic or token authentication.

    with serve(tmp_path) as registry:
        registry.address      # 127.0.0.1:PORT

Needs the programs docker-registry and openssl. Usable from threads and from coroutines: nothing here blocks for long.
"""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from patience import patient

USER, PASSWORD = "user", "open sesame"
_HTPASSWD = "user:$2b$04$z6.Cxaiefi2L0EDQ7MzRieSgBhvreChgls1oP2KFE14Jz4UhmCD7q\n"
"""The two, as the registry wants them: hashed by bcrypt."""


@dataclass(frozen=True)
class Certificate:
    """PEM files of a certificate that signs itself."""

    certificate: Path
    key: Path

    @classmethod
    def make(cls, directory: Path, names: str = "IP:127.0.0.1,DNS:localhost", days: int = 2) -> Certificate:
        """For `names` (as a subjectAltName lists them); a negative number of `days` has passed already."""
        stem = uuid.uuid4().hex
        made = cls(directory / f"{stem}.crt", directory / f"{stem}.key")
        request, extensions = directory / f"{stem}.csr", directory / f"{stem}.ext"
        extensions.write_text(f"subjectAltName={names}\nbasicConstraints=CA:TRUE\n")
        _openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", made.key, "-out", request, "-subj", "/CN=x")
        files = ("-in", request, "-signkey", made.key, "-extfile", extensions, "-out", made.certificate)
        _openssl("x509", "-req", "-days", str(days), *files)
        return made


@dataclass
class Registry:
    address: str
    work: Path
    process: subprocess.Popen[bytes]

    def log(self) -> str:
        return (self.work / "registry.log").read_text(errors="replace")

    def has(self, digest: str) -> bool:
        """Whether a blob of that digest lies in its storage."""
        return bool(list((self.work / "data").glob(f"**/blobs/*/*/{digest.partition(':')[2]}/data")))

    def host_dir(self, text: str) -> Path:
        """A directory whose `hosts.toml` for this registry is `text`."""
        directory = self.work / "certs.d"
        (directory / self.address).mkdir(parents=True, exist_ok=True)
        (directory / self.address / "hosts.toml").write_text(text)
        return directory


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serve(
    work: Path,
    *,
    tls: Certificate | None = None,
    basic: bool = False,
    tokens: TokenServer | None = None,
    mirror_of: str = "",
    shown_to: Certificate | None = None,
) -> Iterator[Registry]:
    """A registry that is empty at first; what it keeps lies below `work`. `mirror_of`: it fetches what it is asked for
    from the registry at that URL. `shown_to`: with `tls`, clients must show a certificate that this one has signed."""
    work.mkdir(exist_ok=True, parents=True)
    address = f"127.0.0.1:{free_port()}"
    http: dict[str, Any] = {"addr": address}
    if tls is not None:
        http["tls"] = {"certificate": str(tls.certificate), "key": str(tls.key)}
        if shown_to is not None:
            http["tls"]["clientcas"] = [str(shown_to.certificate)]
    config: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(work / "data")}, "delete": {"enabled": True}},
        "http": http,
    }
    if mirror_of:
        config["proxy"] = {"remoteurl": mirror_of}
    if basic:
        (work / "htpasswd").write_text(_HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(work / "htpasswd")}}
    if tokens is not None:
        config["auth"] = {
            "token": {
                "realm": tokens.url,
                "service": tokens.service,
                "issuer": tokens.issuer,
                "rootcertbundle": str(tokens.signer.certificate),
            }
        }
    (work / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with (work / "registry.log").open("ab") as log:
        process = subprocess.Popen(["docker-registry", "serve", work / "config.yml"], stdout=log, stderr=log)
    try:
        _wait(address, process, work)
        yield Registry(address, work, process)
    finally:
        process.terminate()
        process.wait(patient(20))


def _wait(address: str, process: subprocess.Popen[bytes], work: Path) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + patient(30)
    while True:
        try:
            socket.create_connection((host, int(port))).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no registry: {(work / 'registry.log').read_text()[-2000:]}") from None
            time.sleep(0.02)


@dataclass
class Asked:
    """A question for a token: `user` is empty where it was asked without."""

    method: str
    user: str
    scopes: list[str]
    grant: str = ""


@dataclass
class TokenServer:
    """A token server that docker-registry trusts: it grants every scope to USER, and to others only to pull."""

    signer: Certificate
    url: str = ""
    service: str = "registry.test"
    issuer: str = "issuer.test"
    seconds: int = 300
    form: bool = True
    """Whether it knows the OAuth2 form, or only GET."""
    asked: list[Asked] = field(default_factory=list)

    def token(self, scopes: list[str], user: str) -> str:
        access = []
        for scope in " ".join(scopes).split():
            kind, name, actions = scope.split(":", 2)
            granted = [action for action in actions.split(",") if user or action == "pull"]
            access.append({"type": kind, "name": name, "actions": granted})
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "sub": user,
            "aud": self.service,
            "iat": now,
            "nbf": now - 60,
            "exp": now + self.seconds,
            "jti": uuid.uuid4().hex,
            "access": access,
        }
        der = base64.b64decode("".join(self.signer.certificate.read_text().split("-----")[2].split()))
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        signed = f"{_url64(json.dumps(header).encode())}.{_url64(json.dumps(claims).encode())}"
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", self.signer.key],
            input=signed.encode(),
            capture_output=True,
            check=True,
        ).stdout
        return f"{signed}.{_url64(signature)}"

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, dict[str, Any]]:
        query = parse_qs(body.decode() if method == "POST" else urlsplit(path).query)
        if method == "POST":
            if not self.form:
                return 404, {}
            user = query.get("username", [""])[0]
            secret = query.get("password", query.get("refresh_token", [""]))[0]
        else:
            text = base64.b64decode((headers.get("Authorization") or "").removeprefix("Basic ")).decode()
            user, _, secret = text.partition(":")
        scopes = query.get("scope", [])
        grant = query.get("grant_type", [""])[0]
        self.asked.append(Asked(method, user, scopes, grant))
        if (user or secret) and secret != PASSWORD:
            return 401, {"errors": [{"code": "UNAUTHORIZED", "message": "wrong password"}]}
        name = "access_token" if method == "POST" else "token"
        return 200, {name: self.token(scopes, user or (secret and USER)), "expires_in": self.seconds}


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@contextmanager
def token_server(directory: Path) -> Iterator[TokenServer]:
    """A token server over http on loopback."""
    server = TokenServer(Certificate.make(directory))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            status, answer = server.answer(self.command, self.path, self.headers, self.rfile.read(length))
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{listener.server_port}/token"
    thread = threading.Thread(target=listener.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()
