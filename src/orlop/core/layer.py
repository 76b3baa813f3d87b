"""Layers kept as they are: a tar, and an index that the kernel mounts, instead of a tree of files.

A snapshotter that keeps layers so is a `LayerKeeper`. A differ, which is given nothing but mounts, asks the keepers
whether one of them knows these. All calls block: they belong in a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from orlop.core.mount import Mount


@dataclass(frozen=True, slots=True)
class KeptLayer:
    """A layer whose tar has `size` bytes and the digest `diff_id`."""

    diff_id: str
    size: int


@dataclass(frozen=True, slots=True)
class Traits:
    """What the index of a layer may have that matters to whoever mounts it.

    `implied`: directories that the archive does not have, and that must look as they do in layers below.
    `whiteouts`: markers of what is taken away from layers below, which must not be seen where nothing is below.
    """

    implied: bool = False
    whiteouts: bool = False


class LayerPlace(Protocol):
    """Where one layer goes that a snapshot is being made of. `tar` and `index` are descriptors of empty files."""

    tar: int
    index: int
    as_is: bool
    """Also a layer with whiteouts and nothing below stays a tar: the place is of an image that is never looked at
    alone."""

    def known(self, source: str, *, overlaid: bool) -> KeptLayer | None:
        """The layer that was once made of `source`: it is the snapshot's now. None if there is none that is whole.

        `overlaid`: the snapshot lies over others; where it does not, none that has whiteouts will do.
        """

    def keep(self, diff_id: str, source: str, traits: Traits) -> None:
        """The files are whole: what is in them is durable on return, and the snapshot's; that is durable with its
        commit.

        `source` names what the tar was made of by something that cannot change: a digest. Empty: nothing known.
        """

    def refuse(self, reason: str) -> None:
        """The layer goes to the snapshot's directory instead. `reason` is kept for who wants to know why."""


@runtime_checkable
class LayerKeeper(Protocol):
    takes_images: bool
    """A place may be given an EROFS image that is whole by itself as `index`, and no tar."""

    def place(self, mounts: Sequence[Mount]) -> AbstractContextManager[LayerPlace] | None:
        """A place for a layer in the fresh snapshot that `mounts` are of; left without `keep`, nothing stays of it.

        None for mounts of somebody else, for a snapshot that has content, and where layers are unpacked.
        """

    def place_ahead(self, life: float) -> AbstractContextManager[LayerPlace] | None:
        """A place for a layer that no snapshot has yet. Once kept, it can be `known` to one for `life` seconds.

        None where layers are not kept by themselves.
        """

    def forget_ahead(self) -> None:
        """Removes layers that were made ahead, whose time is over, and that no snapshot has."""

    def files(self, diff_id: str) -> tuple[str, str] | None:
        """The tar and the index of a layer that is kept here; None if it is not."""

    def remember(self, diff_id: str, source: str) -> None:
        """The layer with this diff id, if it is kept here, was made of `source`, as `LayerPlace.keep` has it."""

    def distrust(self, diff_id: str) -> None:
        """The files of a layer are not what they were: the next one that comes with this diff id replaces them."""

    def current(self, mounts: Sequence[Mount]) -> Sequence[Mount]:
        """The mounts that the snapshot of `mounts` has now: others, if a layer was kept since they were given."""
