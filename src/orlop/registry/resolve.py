"""From a reference to a descriptor: which document a registry has under a tag, or whether it has a digest."""

from __future__ import annotations

from collections.abc import Sequence

from orlop.core import digest as digests
from orlop.core import media
from orlop.core.descriptor import Descriptor
from orlop.core.reference import Reference
from orlop.errors import DataLoss, InvalidArgument, NotFound, OrlopError, OutOfRange
from orlop.registry.endpoint import Endpoint, failure
from orlop.registry.failures import Denied
from orlop.registry.hosts import Capability
from orlop.registry.outcomes import Outcome
from orlop.registry.redaction import printable, redact
from orlop.registry.transport import Answer

MAX_MANIFEST = 4 * 1048 * 1048
"""Bytes of the largest document that is resolved: containerd's limit."""

ACCEPT = ", ".join((media.DOCKER_MANIFEST, media.DOCKER_INDEX, media.OCI_MANIFEST, media.OCI_INDEX, "*/*"))
_BLOB_TYPE = "application/octet-stream"


async def resolve(reference: Reference, endpoints: Sequence[Endpoint]) -> Descriptor:
    """What `reference` points at, by the first host that knows it.

    Raises NotFound where no host knows it, else an error of the kind of the gravest answer.
    """
    if not reference.object:
        raise InvalidArgument.verbatim(f"{reference}: object required (a tag or digest)")
    wanted = Capability.PULL if reference.digest else Capability.PULL | Capability.RESOLVE
    endpoints = [endpoint for endpoint in endpoints if wanted in endpoint.host.capabilities]
    if not endpoints:
        raise NotFound(f"{reference}: no resolve hosts")
    outcome = Outcome()
    # Blobs are looked at only where every host said that there is no such manifest: a host that failed may have it.
    for path in ("manifests", "blobs") if reference.digest else ("manifests",):
        if not outcome.is_not_found:
            break
        for endpoint in endpoints:
            try:
                return await _ask(reference, endpoint, f"{path}/{reference.object}", endpoint is endpoints[-1])
            except Denied as error:
                denied = error.within("pull access denied, repository does not exist or may require authorization")
                outcome.add(denied, endpoint.host.address)
            except InvalidArgument:
                raise
            except OrlopError as error:
                outcome.add(error, endpoint.host.address)
    raise outcome.error(str(reference))


async def _ask(reference: Reference, endpoint: Endpoint, path: str, last: bool) -> Descriptor:
    url = endpoint.url(path)
    async with endpoint.request("HEAD", url, headers={"Accept": ACCEPT}, last=last) as answer:
        # A refusal has no body that says why, and some servers do not know HEAD.
        if answer.status not in (403, 405):
            await _check(answer)
            digest = answer.header("Docker-Content-Digest") or reference.digest
            if answer.size is not None and digest:
                return _described(reference, answer, digest, answer.size)
    async with endpoint.request("GET", url, headers={"Accept": ACCEPT}, last=last) as answer:
        await _check(answer)
        return await _read(reference, answer)


async def _check(answer: Answer) -> None:
    if answer.status == 404:
        await answer.drain()
        raise NotFound(redact(answer.request.url))
    if answer.status != 200:
        raise await failure(answer)


async def _read(reference: Reference, answer: Answer) -> Descriptor:
    """The descriptor of a document by its bytes."""
    if answer.size is not None and answer.size > MAX_MANIFEST:
        raise _too_large(reference, answer.size)
    data = await answer.read(MAX_MANIFEST + 1)
    if len(data) > MAX_MANIFEST:
        raise _too_large(reference, len(data))
    if answer.size is not None and len(data) != answer.size:
        raise DataLoss(f"{answer.request.shown}: {len(data)} bytes came, {answer.size} were announced")
    said = answer.header("Docker-Content-Digest")
    digest = digests.of(data, digests.algorithm_of(reference.digest or said))
    if reference.digest and digest != reference.digest:
        raise DataLoss(f"{answer.request.shown}: the document has digest {digest}")
    if said and _contradicts(said, digest):
        raise DataLoss(f"{answer.request.shown}: the document has digest {digest}, its header {printable(said, 150)!r}")
    return _described(reference, answer, digest, len(data))


def _described(reference: Reference, answer: Answer, digest: str, size: int) -> Descriptor:
    media_type = answer.header("Content-Type").partition(";")[0].strip().lower() or _BLOB_TYPE
    # Registries send the oldest manifests, which nobody makes any more, as plain text.
    if media_type in media.SCHEMA_1 or media_type == "text/plain":
        raise InvalidArgument.verbatim(f"{reference}: schema 1 image manifests are no longer supported")
    if why := digests.problem(digest):
        raise DataLoss(f"{answer.request.shown}: Docker-Content-Digest {printable(digest, 150)!r}: {why}")
    if reference.digest and _contradicts(digest, reference.digest):
        raise DataLoss(f"{answer.request.shown}: Docker-Content-Digest is {digest}")
    if size > MAX_MANIFEST and media_type != _BLOB_TYPE:
        raise _too_large(reference, size)
    return Descriptor(printable(media_type, 255), reference.digest or digest, size)


def _contradicts(said: str, digest: str) -> bool:
    """Whether the two cannot be of the same bytes; digests of different algorithms say nothing about each other."""
    return said.partition(":")[0] == digest.partition(":")[0] and said != digest


def _too_large(reference: Reference, size: int) -> OutOfRange:
    return OutOfRange.verbatim(f"rejecting {size} byte manifest for {reference} (at most {MAX_MANIFEST} are read)")
