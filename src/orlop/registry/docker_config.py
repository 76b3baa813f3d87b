"""Credentials as docker's `config.json` has them: in the file itself, or with helper programs that it names."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from orlop.core.registry import Credential
from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.registry.credential_helper import CredentialHelper
from orlop.registry.hosts import DOCKER, DOCKER_SERVER

_LIMIT = 4 << 20
DOCKER_KEY = "https://index.docker.io/v1/"


class _Auth(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _File(msgspec.Struct, rename={"credential_helpers": "credHelpers", "store": "credsStore"}):
    auths: dict[str, _Auth] = msgspec.field(default_factory=dict)
    credential_helpers: dict[str, str] = msgspec.field(default_factory=dict)
    store: str = ""


def default_path(environment: Mapping[str, str]) -> str:
    """Where docker's client keeps the file: `$DOCKER_CONFIG/config.json`, or `.docker` in the home directory."""
    directory = environment.get("DOCKER_CONFIG") or os.path.join(environment.get("HOME") or "/root", ".docker")
    return os.path.join(directory, "config.json")


class DockerConfig:
    """`Credentials` of the file at `path`, which is read at each use. A file that is not there has none."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def of(self, host: str, reference: str, challenges: Sequence[str]) -> Credential | None:
        """Raises InvalidArgument for a file that is wrong, FailedPrecondition for a helper that fails.

        A failure never leads to other credentials than those that are configured for the host.
        """
        return await asyncio.to_thread(self._of, host, reference)

    def _of(self, host: str, reference: str) -> Credential | None:
        file = self._read()
        key = DOCKER_KEY if is_docker(host) else host
        helper = file.credential_helpers.get(key) or file.credential_helpers.get(_name(host)) or file.store
        if helper:
            found = CredentialHelper(helper).get(key)
            if found is not None:
                return found
        auth = _match(file.auths, host, reference)
        return None if auth is None else self._credential(auth)

    def _credential(self, auth: tuple[str, _Auth]) -> Credential | None:
        key, entry = auth
        if entry.identitytoken:
            return Credential("", entry.identitytoken)
        if not entry.auth:
            return Credential(entry.username, entry.password) if entry.username else None
        try:
            text = base64.b64decode(entry.auth, validate=True).decode()
        except (binascii.Error, ValueError):
            text = ""
        username, colon, secret = text.partition(":")
        if not colon:
            raise InvalidArgument(f"{self._path}: auths.{key!r}: auth is no base64 of user:password")
        return Credential(username, secret.strip("\0"))

    def _read(self) -> _File:
        data = self._bytes()
        if not data.strip():
            return _File()
        try:
            return msgspec.json.decode(data, type=_File)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidArgument(f"{self._path}: {error}") from None

    def _bytes(self) -> bytes:
        try:
            with open(self._path, "rb") as file:
                data = file.read(_LIMIT + 1)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise FailedPrecondition(f"{self._path}: {error.strerror}") from None
        if len(data) > _LIMIT:
            raise InvalidArgument(f"{self._path}: more than {_LIMIT} bytes")
        return data

    async def store(self, host: str, credential: Credential) -> str:
        """Keeps `credential` for `host`, with the helper that is configured for it; says where it is now."""
        return await asyncio.to_thread(self._change, host, credential)

    async def erase(self, host: str) -> str:
        """Forgets what there is for `host`; says where it was, empty if there was nothing."""
        return await asyncio.to_thread(self._change, host, None)

    def _change(self, host: str, credential: Credential | None) -> str:
        file = self._read()
        key = DOCKER_KEY if is_docker(host) else host
        name = file.credential_helpers.get(key) or file.credential_helpers.get(_name(host)) or file.store
        if name:
            helper = CredentialHelper(name)
            if credential is not None:
                helper.store(key, credential)
            elif not helper.erase(key):
                return ""
            return helper.program
        document = self._document()
        auths = document.setdefault("auths", {})
        if credential is None:
            keys = [stored for stored in auths if _same(stored, host)]
            for stored in keys:
                del auths[stored]
            if not keys:
                return ""
        elif credential.username:
            text = base64.b64encode(f"{credential.username}:{credential.secret}".encode()).decode()
            auths[key] = {"auth": text}
        else:
            auths[key] = {
                "auth": base64.b64encode(b"00000000-0000-0000-0000-000000000000:").decode(),
                "identitytoken": credential.secret,
            }
        self._write(document)
        return self._path

    def _document(self) -> dict[str, Any]:
        data = self._bytes()
        document = msgspec.json.decode(data) if data.strip() else {}
        return document if isinstance(document, dict) else {}

    def _write(self, document: dict[str, Any]) -> None:
        path = os.path.realpath(self._path)
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        temporary = f"{path}.{os.getpid()}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


def is_docker(host: str) -> bool:
    return host in (DOCKER, DOCKER_SERVER, "index.docker.io")


def _name(host: str) -> str:
    """The key people write for `host` in `credHelpers`."""
    return DOCKER if is_docker(host) else host


def _match(auths: Mapping[str, _Auth], host: str, reference: str) -> tuple[str, _Auth] | None:
    """The entry for `host`, of several the one that names most of the reference's path."""
    best: tuple[str, _Auth] | None = None
    length = -1
    repository = reference.partition("/")[2].partition("@")[0].partition(":")[0]
    for key, entry in auths.items():
        found = _covered(key, host, repository)
        if found > length:
            best, length = (key, entry), found
    return best


def _covered(key: str, host: str, repository: str) -> int:
    """How much of `repository` the key covers; -1 if it is for something else."""
    address, _, path = key.removeprefix("https://").removeprefix("http://").partition("/")
    path = path.strip("/")
    if not (address == host or (is_docker(address) and is_docker(host))):
        return -1
    if path in ("", "v1", "v2"):
        return 0
    return len(path) if f"{repository}/".startswith(f"{path}/") else -1


def _same(key: str, host: str) -> bool:
    return _covered(key, host, "") == 0
