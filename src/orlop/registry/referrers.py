"""What refers to a document: the referrers API, and the tag that stands in where there is none."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from orlop.core import digest as digests
from orlop.core import media
from orlop.core.descriptor import Descriptor
from orlop.errors import InvalidArgument, OutOfRange
from orlop.registry.endpoint import Endpoint, failure
from orlop.registry.links import next_url
from orlop.registry.scopes import repository_scope
from orlop.registry.transport import Answer, Body

_LIMIT = 4 << 20
_MAX_PAGES = 100
_MAX_ENTRIES = 10_000


class _Entry(msgspec.Struct, rename="camel", omit_defaults=True):
    media_type: str
    digest: str
    size: int
    artifact_type: str = ""
    annotations: dict[str, str] | None = None

    def noun(self) -> Descriptor:
        return Descriptor(
            self.media_type, self.digest, self.size, self.annotations or {}, artifact_type=self.artifact_type
        )


class _Index(msgspec.Struct, rename="camel"):
    schema_version: int = 2
    media_type: str = media.OCI_INDEX
    manifests: list[_Entry] = msgspec.field(default_factory=list)


class _Subject(msgspec.Struct, rename="camel"):
    digest: str = ""


class _Typed(msgspec.Struct, rename="camel"):
    media_type: str = ""


class _Document(msgspec.Struct, rename="camel"):
    subject: _Subject | None = None
    artifact_type: str = ""
    config: _Typed | None = None
    annotations: dict[str, str] | None = None


async def referrers(endpoint: Endpoint, digest: str, artifact_type: str) -> list[Descriptor]:
    """The documents that name `digest` as their subject, of `artifact_type` or of all types.

    Raises OutOfRange where the registry lists more than is read.
    """
    digests.validate(digest, "referrers")
    query = [("artifactType", artifact_type)] if artifact_type else []
    url = endpoint.url(f"referrers/{digest}", query)
    found: list[_Entry] = []
    for _ in range(_MAX_PAGES):
        async with endpoint.request("GET", url, headers={"Accept": media.OCI_INDEX}) as answer:
            if answer.status in (404, 405) or not _is_index(answer):
                found = (await _fallback(endpoint, digest, ())).manifests
                break
            found += (await _read(answer)).manifests
            url = next_url(answer.all("Link"), answer.request.url)
        if len(found) > _MAX_ENTRIES:
            raise OutOfRange(f"referrers of {digest}: more than {_MAX_ENTRIES} are listed")
        if not url:
            break
    # A registry need not filter.
    return [entry.noun() for entry in found if not artifact_type or entry.artifact_type == artifact_type]


async def refer(endpoint: Endpoint, path: str, descriptor: Descriptor, data: bytes, answer: Answer) -> None:
    """Keeps the referrers of a pushed document's subject, where the registry did not do so itself.

    A registry that does says so in `OCI-Subject`.
    """
    document = _document(data)
    subject = document.subject.digest if document.subject is not None else ""
    if not subject or answer.header("OCI-Subject") or digests.problem(subject):
        return
    scopes = (repository_scope(path, "pull", "push"),)
    index = await _fallback(endpoint, subject, scopes)
    if any(entry.digest == descriptor.digest for entry in index.manifests):
        return
    artifact_type = document.artifact_type or (document.config.media_type if document.config else "")
    index.manifests.append(
        _Entry(descriptor.media_type, descriptor.digest, descriptor.size, artifact_type, document.annotations)
    )
    headers = {"Content-Type": media.OCI_INDEX}
    body = Body.of(msgspec.json.encode(index))
    url = endpoint.url(f"manifests/{_tag(subject)}")
    async with endpoint.request("PUT", url, headers=headers, body=body, scopes=scopes) as stored:
        if stored.status not in (200, 201, 202):
            raise await failure(stored)


def _document(data: bytes) -> _Document:
    try:
        return msgspec.json.decode(data, type=_Document)
    except (msgspec.DecodeError, RecursionError):
        return _Document()


async def _fallback(endpoint: Endpoint, digest: str, scopes: Sequence[str]) -> _Index:
    url = endpoint.url(f"manifests/{_tag(digest)}")
    async with endpoint.request("GET", url, headers={"Accept": media.OCI_INDEX}, scopes=scopes) as answer:
        if answer.status == 404:
            return _Index()
        return await _read(answer)


async def _read(answer: Answer) -> _Index:
    if answer.status != 200:
        raise await failure(answer)
    data = await answer.read(_LIMIT + 1)
    if len(data) > _LIMIT:
        raise OutOfRange(f"{answer.request.shown}: an index of more than {_LIMIT} bytes")
    try:
        index = msgspec.json.decode(data, type=_Index)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidArgument(f"{answer.request.shown}: no index of referrers: {error}") from None
    if len(index.manifests) > _MAX_ENTRIES:
        raise OutOfRange(f"{answer.request.shown}: {len(index.manifests)} referrers, at most {_MAX_ENTRIES} are read")
    for entry in index.manifests:
        if digests.problem(entry.digest) or entry.size < 0:
            raise InvalidArgument(f"{answer.request.shown}: a referrer without a valid digest and size")
    return index


def _is_index(answer: Answer) -> bool:
    return answer.status != 200 or answer.header("Content-Type").partition(";")[0].strip() == media.OCI_INDEX


def _tag(digest: str) -> str:
    return digest.replace(":", "-")[:128]
