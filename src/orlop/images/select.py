"""Which manifest of an index fits a platform."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orlop.core import media
from orlop.core.content import ContentStore
from orlop.core.descriptor import Descriptor
from orlop.core.platform import Platform
from orlop.core.scope import Scope
from orlop.errors import InvalidArgument, NotFound
from orlop.images import documents
from orlop.images.documents import DescriptorDocument, Manifest

MAX_DEPTH = 8
"""Indexes within indexes that are followed."""

_ANY = Platform("", "")
_UNKNOWN = "unknown"

# One processor has several names; these are what indexes are written with.
_NORMAL = {
    ("x86_64", ""): ("amd64", ""),
    ("amd64", "v1"): ("amd64", ""),
    ("i386", ""): ("386", ""),
    ("aarch64", ""): ("arm64", ""),
    ("arm64", "v8"): ("arm64", ""),
    ("arm", ""): ("arm", "v7"),
}

# What a processor runs besides its own variant, best first.
_COMPATIBLE = {
    ("arm64", ""): [("arm64", ""), ("arm", "v8"), ("arm", "v7"), ("arm", "v6"), ("arm", "v5")],
    ("arm", "v8"): [("arm", "v8"), ("arm", "v7"), ("arm", "v6"), ("arm", "v5")],
    ("arm", "v7"): [("arm", "v7"), ("arm", "v6"), ("arm", "v5")],
    ("arm", "v6"): [("arm", "v6"), ("arm", "v5")],
    ("amd64", ""): [("amd64", ""), ("386", "")],
}


def rank(platform: Platform, wanted: Platform) -> int | None:
    """How well an image of `platform` runs where `wanted` is native: 0 is best, None not at all."""
    if platform.os != wanted.os or not set(platform.os_features) <= set(wanted.os_features):
        return None
    if not _same_build(platform.os_version, wanted.os_version):
        return None
    own, found = _processor(wanted), _processor(platform)
    choices = _COMPATIBLE.get(own, [own])
    return choices.index(found) if found in choices else None


def _same_build(version: str, wanted: str) -> bool:
    """Whether an image for one version of a system runs on the other: they share all but the last number, which counts
    the revisions of a build. A version that is not known is any."""
    return not version or not wanted or version.split(".")[:3] == wanted.split(".")[:3]


def _processor(platform: Platform) -> tuple[str, str]:
    named = (platform.architecture, platform.variant)
    return _NORMAL.get(named, named)


def choose(
    entries: Sequence[DescriptorDocument], wanted: Sequence[Platform], limit: int = 0
) -> list[tuple[DescriptorDocument, bool]]:
    """All entries of an index, each with whether it is for a platform that is `wanted` (none: every one is).

    Of the entries for one wanted platform only the best count, in the order of `wanted`; those that name no platform
    count, and come last. At most `limit` manifests count, if it is not 0.
    """
    if wanted:
        chosen = [entry for platform in wanted for entry in _best(entries, platform)]
        chosen += [entry for entry in entries if entry.platform is None]
    else:
        chosen = list(entries)
    unique = {id(entry): entry for entry in chosen}
    if limit:
        unique = dict(list(unique.items())[:limit])
    rest = (entry for entry in entries if id(entry) not in unique)
    return [*((entry, True) for entry in unique.values()), *((entry, False) for entry in rest)]


def _best(entries: Sequence[DescriptorDocument], wanted: Platform) -> list[DescriptorDocument]:
    ranked = [(rank(entry.platform.noun(), wanted), entry) for entry in entries if entry.platform is not None]
    best = min((fit for fit, _ in ranked if fit is not None), default=None)
    return [entry for fit, entry in ranked if fit is not None and fit == best]


async def manifest_for(
    content: ContentStore, scope: Scope, target: Descriptor, wanted: Platform
) -> tuple[Descriptor, Manifest]:
    """The manifest that `target` (a manifest or an index) has for `wanted`.

    Raises NotFound, naming what there is, if none fits.
    """
    search = _Search(content, scope, wanted)
    found = await search.best(target, 0)
    if found is None:
        has = f" (has {', '.join(search.available)})" if search.available else ""
        raise NotFound(f"{target.digest}: no manifest for {wanted}{has}")
    return found[1], await documents.read_manifest(content, scope, found[1])


@dataclass(slots=True)
class _Search:
    """A way through an index: what it has met so far, so that no document is read twice however often it is named."""

    content: ContentStore
    scope: Scope
    wanted: Platform
    available: dict[str, None] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    async def best(self, target: Descriptor, depth: int) -> tuple[int, Descriptor] | None:
        if depth > MAX_DEPTH:
            raise InvalidArgument(f"index {target.digest}: indexes nested more than {MAX_DEPTH} deep")
        self.seen.add(target.digest)
        if media.is_manifest(target.media_type):
            fit = self._fit(await platform_of(self.content, self.scope, target))
            return None if fit is None else (fit, target)
        if not media.is_index(target.media_type):
            raise InvalidArgument(f"{target.digest}: {target.media_type!r} is neither a manifest nor an index")
        index = await documents.read_index(self.content, self.scope, target)
        best: tuple[int, Descriptor] | None = None
        for entry in self._candidates(index.manifests):
            if entry.digest in self.seen:
                continue
            try:
                found = await self.best(entry.noun(), depth + 1)
            except NotFound:
                continue  # an entry whose content is not here cannot be used
            if found is not None and (best is None or found[0] < best[0]):
                best = found
        return best

    def _candidates(self, entries: Sequence[DescriptorDocument]) -> list[DescriptorDocument]:
        """Entries worth reading: those that name no platform, and those whose platform fits."""
        chosen = []
        for entry in entries:
            if not (media.is_manifest(entry.media_type) or media.is_index(entry.media_type)):
                continue
            platform = entry.platform.noun() if entry.platform is not None else _ANY
            if platform.architecture and self._fit(platform) is None:
                continue
            chosen.append(entry)
        return chosen

    def _fit(self, platform: Platform) -> int | None:
        fit = rank(platform, self.wanted)
        if fit is None and platform.os not in ("", _UNKNOWN):
            self.available[str(platform)] = None
        return fit


async def platform_of(content: ContentStore, scope: Scope, manifest: Descriptor) -> Platform:
    """The platform that a manifest's config names; an empty one if it is no image's (an attestation, a chart)."""
    document = await documents.read_manifest(content, scope, manifest)
    if document.config.media_type not in media.CONFIGS:
        return _ANY
    return (await documents.read_config(content, scope, document.config.noun())).platform
