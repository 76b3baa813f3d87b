"""Manifests of registries that forgot what a config is (distribution issue 1622): `application/octet-stream`, they say.

They are rewritten as containerd rewrites them, to the byte, so that both come to one digest.
"""

from __future__ import annotations

import json
from typing import Any

from orlop.core import digest as digests
from orlop.core import media
from orlop.core.content import ContentStore, read_whole, write_whole
from orlop.core.descriptor import Descriptor
from orlop.core.scope import Scope
from orlop.images import children, documents

UNTYPED = "application/octet-stream"

_MANIFEST = ("schemaVersion", "mediaType", "artifactType", "config", "layers", "subject", "annotations")
_DESCRIPTOR = ("mediaType", "digest", "size", "urls", "annotations", "data", "platform", "artifactType")
_PLATFORM = ("architecture", "os", "os.version", "os.features", "variant")
_ALWAYS = frozenset({"schemaVersion", "config", "layers"}), frozenset({"mediaType", "digest", "size"})
_ESCAPES = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def is_legacy(manifest: Descriptor, config: Descriptor) -> bool:
    return manifest.media_type == media.DOCKER_MANIFEST and config.media_type == UNTYPED


async def rewrite(content: ContentStore, scope: Scope, manifest: Descriptor) -> Descriptor:
    """Stores the manifest with its config's type, and returns what is to be pointed at instead."""
    data = _rewritten(json.loads(await read_whole(content, scope, manifest.digest, documents.LIMIT)))
    written = Descriptor(manifest.media_type, digests.of(data), len(data), manifest.annotations)
    document = documents.manifest_of(data, written.media_type, f"manifest {written.digest}")
    below = [document.config.noun(), *(layer.noun() for layer in document.layers)]
    labels = children.labels_for(below)
    await write_whole(content, scope, f"manifest-{written.digest}", data, written.digest, labels)
    return written


def _rewritten(document: dict[str, Any]) -> bytes:
    config = document["config"] | {"mediaType": media.DOCKER_CONFIG}
    fields = document | {"config": _descriptor(config), "layers": [_descriptor(one) for one in document["layers"]]}
    if fields.get("subject"):
        fields["subject"] = _descriptor(fields["subject"])
    ordered = _ordered(fields, _MANIFEST, _ALWAYS[0])
    return json.dumps(ordered, indent=3, ensure_ascii=False).translate(_ESCAPES).encode()


def _descriptor(fields: dict[str, Any]) -> dict[str, Any]:
    if fields.get("platform"):
        fields = fields | {"platform": _ordered(fields["platform"], _PLATFORM, frozenset({"architecture", "os"}))}
    return _ordered(fields, _DESCRIPTOR, _ALWAYS[1])


def _ordered(fields: dict[str, Any], keys: tuple[str, ...], always: frozenset[str]) -> dict[str, Any]:
    """The known fields in their order, annotations by name; what is empty is left out unless it is there `always`."""
    if fields.get("annotations"):
        fields = fields | {"annotations": dict(sorted(fields["annotations"].items()))}
    return {key: fields.get(key) for key in keys if key in always or fields.get(key)}
