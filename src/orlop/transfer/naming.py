"""The names under which a transfer stores what it brings (`ImageStore`, `ImageReference`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from orlop.core import clock, rfc3339
from orlop.core.descriptor import Descriptor
from orlop.core.image import Image, ImageStore
from orlop.core.scope import Scope
from orlop.core.transfer import ImageReference, StoreEnd
from orlop.errors import AlreadyExists, NotFound
from orlop.transfer.refs import REF_NAME

IMAGE_NAME = "io.containerd.image.name"


def names_of_root(end: StoreEnd, target: Descriptor) -> list[Image]:
    """The images that the root of what came is stored as: a pulled image, or the index of an archive."""
    images = [Image(end.name, target, dict(end.labels))] if end.name else []
    for reference in end.extra_references:
        if reference.add_digest:
            images.append(Image(f"{reference.name}@{target.digest}", target, _extra_labels(end)))
        elif not reference.is_prefix:
            images.append(Image(reference.name, target, _extra_labels(end)))
    return images


def names_in_archive(end: StoreEnd, target: Descriptor) -> list[Image]:
    """The images that an entry of an archive's index is stored as, by the prefixes that fit its annotations."""
    images = []
    for reference in end.extra_references:
        if reference.is_prefix:
            images += [Image(name, target, _extra_labels(end)) for name in _prefixed(reference, target)]
    return images


async def store(images: ImageStore, scope: Scope, wanted: list[Image]) -> list[Image]:
    """Creates the images, or points those that are there at what came. Raises NotFound where there are none."""
    if not wanted:
        raise NotFound("no image name found")
    return [await _store_one(images, scope, image) for image in wanted]


async def _store_one(images: ImageStore, scope: Scope, image: Image) -> Image:
    while True:
        try:
            return await images.create(scope, image)
        except AlreadyExists:
            pass
        try:
            return await images.update(scope, image, None)
        except NotFound:
            continue  # it was removed in between


def _prefixed(reference: ImageReference, target: Descriptor) -> Iterator[str]:
    by_digest = f"{reference.name}@{target.digest}"
    name = _name_of(reference, target.annotations)
    if not name:
        if reference.add_digest:
            yield by_digest
        return
    yield name
    if reference.add_digest and not reference.skip_named_digest:
        yield by_digest


def _name_of(reference: ImageReference, annotations: Mapping[str, str]) -> str:
    """The name that annotations give under the rules of a prefix; empty for none."""
    full = annotations.get(IMAGE_NAME, "")
    if full:
        return full if _is_full(full) and _permits(reference, full) else ""
    own = annotations.get(REF_NAME, "")
    if _is_full(own):
        return own if _permits(reference, own) else ""
    return f"{reference.name}:{own}" if own and reference.name else ""


def _is_full(name: str) -> bool:
    return any(mark in name for mark in "/:@")


def _permits(reference: ImageReference, name: str) -> bool:
    if reference.allow_overwrite:
        return True
    rest = name.removeprefix(reference.name)
    return name.startswith(reference.name) and (not rest or rest[0] in "/:@")


def _extra_labels(end: StoreEnd) -> dict[str, str]:
    """A further name lives as long as the main one, where there is one."""
    labels = dict(end.labels)
    if end.name:
        labels["containerd.io/gc.bref.image"] = end.name
        labels["containerd.io/gc.expire"] = rfc3339.render(clock.now())
    return labels
