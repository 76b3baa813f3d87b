"""What images share: their layers as a tree, and what would be freed if one of them went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from orlop.core.platform import Platform
from orlop.images.survey import Layer, Survey


@dataclass(frozen=True, slots=True)
class Share:
    """Bytes of content that are here of an image: all of it, and what no other image has."""

    total: int
    alone: int

    @property
    def shared(self) -> int:
        return self.total - self.alone


@dataclass(slots=True)
class Node:
    """A layer in the tree: `users` images have it, `images` are those that end with it, `upper` the layers upon it."""

    layer: Layer
    parent: str
    users: int = 0
    images: list[str] = field(default_factory=list)
    upper: dict[str, Node] = field(default_factory=dict)


def shares(surveys: Mapping[str, Survey]) -> dict[str, Share]:
    """By image name. Two names for one thing share all of it: removing one of them frees nothing."""
    here = {
        name: {digest: descriptor.size for digest, (descriptor, present) in survey.blobs().items() if present}
        for name, survey in surveys.items()
    }
    users = Counter(digest for blobs in here.values() for digest in blobs)
    return {
        name: Share(sum(blobs.values()), sum(size for digest, size in blobs.items() if users[digest] == 1))
        for name, blobs in here.items()
    }


def forest(surveys: Mapping[str, Survey], wanted: Platform | None) -> tuple[dict[str, Node], list[str]]:
    """The trees of layers, by chain id, of the editions for `wanted` (None: of all); and the images that have none."""
    roots: dict[str, Node] = {}
    bare = []
    for name, survey in surveys.items():
        chosen = survey.editions if wanted is None else [edition for edition in [survey.edition(wanted)] if edition]
        planted = False
        for edition in chosen:
            layers = [layer for layer in edition.layers if layer.chain_id]
            if layers:
                _plant(roots, layers, name if wanted else f"{name} ({edition.platform})")
                planted = True
        if not planted:
            bare.append(name)
    return roots, bare


def _plant(roots: dict[str, Node], layers: Iterable[Layer], name: str) -> None:
    upper, node, parent = roots, None, ""
    for layer in layers:
        node = upper.setdefault(layer.chain_id, Node(layer, parent))
        node.users += 1
        upper, parent = node.upper, layer.chain_id
    if node is not None:
        node.images.append(name)


def freed_snapshots(surveys: Mapping[str, Survey], parents: Mapping[str, str]) -> dict[str, list[str]]:
    """The snapshots that would go with each image: those of its chains that no other image and nothing else stands on.

    `parents` has every snapshot, and what it stands on.
    """
    chains = {
        name: {layer.chain_id for edition in survey.editions for layer in edition.layers} & parents.keys()
        for name, survey in surveys.items()
    }
    users = Counter(chain_id for chain in chains.values() for chain_id in chain)
    imaged = set(users)
    # What is no image's, a container's for one, holds all that it stands on.
    held: set[str] = set()
    for key in parents.keys() - imaged:
        while (key := parents.get(key, "")) and key not in held:
            held.add(key)
    return {name: sorted(key for key in chain if users[key] == 1 and key not in held) for name, chain in chains.items()}
