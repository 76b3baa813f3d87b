"""The labels by which a document keeps what it points at from being collected."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orlop.core import media
from orlop.core.content import ContentInfo, ContentStore
from orlop.core.descriptor import Descriptor
from orlop.core.platform import Platform
from orlop.core.scope import Scope
from orlop.errors import InvalidArgument, NotFound
from orlop.images import documents, select
from orlop.images.select import MAX_DEPTH

PREFIX = "containerd.io/gc.ref.content."


def labels_for(children: Iterable[Descriptor]) -> dict[str, str]:
    """`config`, `l.<n>` for layers, `m.<n>` for manifests and `<n>` for all else: the keys that clients write."""
    labels: dict[str, str] = {}
    counts: dict[str, int] = defaultdict(int)
    for child in children:
        kind = _kind(child.media_type)
        number = counts[kind]
        counts[kind] += 1
        key = f"{PREFIX}{kind}{number if number or kind.endswith('.') or not kind else ''}"
        labels[key] = child.digest
    return labels


def _kind(media_type: str) -> str:
    if media_type in media.KNOWN_CONFIGS:
        return "config"
    if media.is_manifest(media_type):
        return "m."
    return "l." if media.is_layer(media_type) else ""


async def label(
    content: ContentStore, scope: Scope, target: Descriptor, platforms: Sequence[Platform] = (), limit: int = 0
) -> int:
    """Labels `target` and all documents below it that are here; returns how many manifests these are. Raises NotFound
    if `target` is not here.

    With `platforms` or a `limit` (as for `select.choose`) only the manifests that these choose, of which none may be
    missing: what the others name is not kept.
    """
    return await _label(_Wanted(content, scope, platforms, limit), target, 0, set())


@dataclass(frozen=True, slots=True)
class _Wanted:
    content: ContentStore
    scope: Scope
    platforms: Sequence[Platform]
    limit: int


async def _label(wanted: _Wanted, target: Descriptor, depth: int, seen: set[str]) -> int:
    content, scope = wanted.content, wanted.scope
    if depth > MAX_DEPTH:
        raise InvalidArgument(f"index {target.digest}: indexes nested more than {MAX_DEPTH} deep")
    seen.add(target.digest)
    manifests = 0
    if media.is_manifest(target.media_type):
        manifest = await documents.read_manifest(content, scope, target)
        labels = labels_for([manifest.config.noun(), *(layer.noun() for layer in manifest.layers)])
        manifests = 1
    elif media.is_index(target.media_type):
        index = await documents.read_index(content, scope, target)
        for entry, fits in select.choose(index.manifests, wanted.platforms, wanted.limit):
            if not fits or entry.digest in seen:
                continue
            try:
                manifests += await _label(wanted, entry.noun(), depth + 1, seen)
            except NotFound:
                if wanted.platforms:
                    raise
                continue  # an archive may hold a part of an index
        labels = labels_for([entry.noun() for entry in index.manifests])
    else:
        return 0
    await content.update(scope, ContentInfo(target.digest, 0, labels=labels), [f"labels.{key}" for key in labels])
    return manifests
