"""Layers kept as tar and index where a snapshotter has a place for them (`core.layer`)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

from orlop.core.layer import LayerKeeper, LayerPlace, Traits
from orlop.core.mount import Mount
from orlop.layers import syncing

_PIECE = 1 << 20
_WRITEBACK = 32 << 20

_log = logging.getLogger(__name__)


class Keepers:
    """The snapshotters that keep layers, asked in turn."""

    def __init__(self, keepers: Sequence[LayerKeeper] = ()) -> None:
        self._keepers = keepers

    def place(self, mounts: Sequence[Mount]) -> AbstractContextManager[LayerPlace] | None:
        return next((found for keeper in self._keepers if (found := keeper.place(mounts)) is not None), None)

    def place_of_image(self, mounts: Sequence[Mount]) -> AbstractContextManager[LayerPlace] | None:
        """A place that takes an image as it is."""
        return Keepers([keeper for keeper in self._keepers if keeper.takes_images]).place(mounts)

    def place_ahead(self, life: float) -> AbstractContextManager[LayerPlace] | None:
        """A place for a layer that no snapshot has yet."""
        return next((found for keeper in self._keepers if (found := keeper.place_ahead(life)) is not None), None)

    def forget_ahead(self) -> None:
        """Removes what was made ahead and kept for long enough."""
        for keeper in self._keepers:
            keeper.forget_ahead()

    def remember(self, diff_id: str, source: str) -> None:
        """What is kept with `diff_id` was made of `source`."""
        for keeper in self._keepers:
            keeper.remember(diff_id, source)

    def current(self, mounts: Sequence[Mount]) -> Sequence[Mount]:
        """What to mount for somebody who was given `mounts`."""
        for keeper in self._keepers:
            mounts = keeper.current(mounts)
        return mounts


def index(place: LayerPlace, pieces: Iterable[bytes], *, overlaid: bool, entries_limit: int) -> Traits | None:
    """Writes the tar of `pieces`, and its index, to `place`; None where the layer must be unpacked from that tar.

    `overlaid`: the layer goes over others, so that it may take something away.
    """
    from orlop.layers.index import NotIndexable, index_layer

    try:
        made = index_layer(_with_writeback(pieces, place.tar), place.tar, place.index, entries_limit=entries_limit)
    except NotIndexable as error:
        _refuse(place, str(error))
        return None
    # Both files' blocks are in the file system's journal before the first of them is synced: one commit is enough.
    syncing.start_writeback(place.tar)
    syncing.start_writeback(place.index)
    if made.whiteouts and not overlaid and not place.as_is:
        # There is nothing to take away, and a mount of the index alone would show the markers.
        _refuse(place, f"takes away {made.whiteouts} names with no layer below")
        return None
    return Traits(implied=bool(made.implied), whiteouts=bool(made.whiteouts))


def _refuse(place: LayerPlace, reason: str) -> None:
    _log.info("a layer is unpacked, as an index cannot show it: %s", reason)
    place.refuse(reason)


def written(place: LayerPlace) -> Iterator[bytes]:
    """The tar of `place`, from its start."""
    offset = 0
    while piece := os.pread(place.tar, _PIECE, offset):
        yield piece
        offset += len(piece)


def _with_writeback(pieces: Iterable[bytes], fd: int) -> Iterator[bytes]:
    """Lets the disk begin while the stream lasts: the sync at the end then has little left to wait for."""
    pending = 0
    for piece in pieces:
        yield piece
        pending += len(piece)
        if pending >= _WRITEBACK:
            syncing.start_writeback(fd)
            pending = 0
