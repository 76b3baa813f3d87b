"""The labels by which a document keeps what it points at from being collected."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from orlop.core import media
from orlop.core.content import ContentInfo, ContentStore
from orlop.core.descriptor import Descriptor
from orlop.core.scope import Scope
from orlop.errors import InvalidArgument, NotFound
from orlop.images import documents
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


async def label(content: ContentStore, scope: Scope, target: Descriptor) -> None:
    """Labels `target` and all documents below it that are here. Raises NotFound if `target` is not."""
    await _label(content, scope, target, 0, set())


async def _label(content: ContentStore, scope: Scope, target: Descriptor, depth: int, seen: set[str]) -> None:
    if depth > MAX_DEPTH:
        raise InvalidArgument(f"index {target.digest}: indexes nested more than {MAX_DEPTH} deep")
    seen.add(target.digest)
    if media.is_manifest(target.media_type):
        manifest = await documents.read_manifest(content, scope, target)
        labels = labels_for([manifest.config.noun(), *(layer.noun() for layer in manifest.layers)])
    elif media.is_index(target.media_type):
        index = await documents.read_index(content, scope, target)
        children = [entry.noun() for entry in index.manifests]
        for child in children:
            if child.digest in seen:
                continue
            try:
                await _label(content, scope, child, depth + 1, seen)
            except NotFound:
                continue  # an archive may hold a part of an index
        labels = labels_for(children)
    else:
        return
    await content.update(scope, ContentInfo(target.digest, 0, labels=labels), [f"labels.{key}" for key in labels])
