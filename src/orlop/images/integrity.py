"""Checks blobs against their digests, and kept layers against their diff ids and what their tar says is in them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Protocol

from orlop.core.content import Backend, ContentStore
from orlop.core.integrity import Finding
from orlop.core.layer import LayerKeeper
from orlop.core.scope import Scope
from orlop.errors import DataLoss, NotFound, OrlopError
from orlop.layers.index import NotIndexable, index_layer
from orlop.layers.pipeline import Digester, in_thread

_PIECE = 1 << 20


class VerifyingBackend(Backend, Protocol):
    async def verify(self, digest: str) -> bool:
        """Whether the blob's bytes have its digest."""


class Checks:
    """Implements `core.integrity.Checker` over a content store, its backend, and snapshotters that keep layers."""

    def __init__(self, content: ContentStore, backend: VerifyingBackend, keepers: Sequence[LayerKeeper]) -> None:
        self._content = content
        self._backend = backend
        self._keepers = keepers

    async def check(
        self, scope: Scope, blobs: Sequence[str], layers: Sequence[str], *, discard: bool = False
    ) -> AsyncIterator[Finding]:
        """As `core.integrity.Checker` says."""
        for digest in blobs:
            yield await self._blob(scope, digest, discard)
        for diff_id in layers:
            yield await self._layer(diff_id, discard)

    async def _blob(self, scope: Scope, digest: str, discard: bool) -> Finding:
        try:
            await (await self._content.open_reader(scope, digest)).close()
            whole = await self._backend.verify(digest)
        except NotFound:
            return Finding("blob", digest, "missing", present=False)
        except DataLoss as error:
            problem = str(error)
        else:
            if whole:
                return Finding("blob", digest)
            problem = "its bytes have another digest"
        if discard:
            await self._backend.delete(digest)
            try:
                await (await self._content.open_reader(scope, digest)).close()
            except NotFound:  # and by that every namespace knows that it is lost
                return Finding("blob", digest, problem, present=False)
        return Finding("blob", digest, problem)

    async def _layer(self, diff_id: str, discard: bool) -> Finding:
        found = [(keeper, files) for keeper in self._keepers if (files := await _files(keeper, diff_id)) is not None]
        problems = []
        for keeper, (tar, index) in found:
            problem = await in_thread(lambda stop, t=tar, i=index: _problem(diff_id, t, i, stop))  # type: ignore[misc]
            if problem:
                problems.append(problem)
                if discard:
                    await asyncio.to_thread(keeper.distrust, diff_id)
        return Finding("layer", diff_id, "; ".join(problems), present=bool(found))


async def _files(keeper: LayerKeeper, diff_id: str) -> tuple[str, str] | None:
    return await asyncio.to_thread(keeper.files, diff_id)


def _problem(diff_id: str, tar: str, index: str, stop: threading.Event) -> str:
    """What is wrong with the files of a layer; empty if they are whole."""
    for path in (tar, index):
        if not os.path.lexists(path):
            return f"{path} is missing"
    made, nowhere = os.memfd_create("index"), os.open(os.devnull, os.O_WRONLY)
    try:
        with Digester() as digester:
            try:
                index_layer(digester.passing(_pieces(tar, stop)), nowhere, made)
            except (NotIndexable, OrlopError):
                return f"{tar} is damaged"
        if digester.digest != diff_id:
            return f"{tar} has the digest {digester.digest}"
        with open(index, "rb", buffering=0) as kept, open(f"/proc/self/fd/{made}", "rb", buffering=0) as right:
            while (piece := right.read(_PIECE)) == kept.read(_PIECE):
                if not piece:
                    return ""
        return f"{index} is damaged"
    except OSError as error:
        return f"{tar} cannot be read: {error.strerror}"
    finally:
        os.close(made)
        os.close(nowhere)


def _pieces(path: str, stop: threading.Event) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        while not stop.is_set() and (piece := file.read(_PIECE)):
            yield piece
