"""The Images service."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from orlop.api.services.images.v1 import images_pb2 as pb
from orlop.core.image import Image, ImageStore
from orlop.core.wire import common
from orlop.core.wire import image as wire
from orlop.errors import InvalidArgument
from orlop.rpc.scope import scope_of
from orlop.rpc.service import Call

_EPOCH_LIMIT = 1 << 63
"""Nanoseconds: what the database keeps of a time."""


class ImagesService:
    def __init__(self, store: ImageStore) -> None:
        self._store = store

    async def Get(self, request: pb.GetImageRequest, call: Call) -> pb.GetImageResponse:
        return pb.GetImageResponse(image=wire.image(await self._store.get(scope_of(call), request.name)))

    async def List(self, request: pb.ListImagesRequest, call: Call) -> pb.ListImagesResponse:
        images = await self._store.list(scope_of(call), request.filters)
        return pb.ListImagesResponse(images=map(wire.image, images))

    async def Create(self, request: pb.CreateImageRequest, call: Call) -> pb.CreateImageResponse:
        made = await self._store.create(scope_of(call), _image_in(request), epoch=_epoch_in(request))
        return pb.CreateImageResponse(image=wire.image(made))

    async def Update(self, request: pb.UpdateImageRequest, call: Call) -> pb.UpdateImageResponse:
        updated = await self._store.update(
            scope_of(call), _image_in(request), common.mask_of(request), epoch=_epoch_in(request)
        )
        return pb.UpdateImageResponse(image=wire.image(updated))

    async def Delete(self, request: pb.DeleteImageRequest, call: Call) -> Empty:
        target = common.descriptor_of(request.target) if request.HasField("target") else None
        await self._store.delete(scope_of(call), request.name, target=target, sync=request.sync)
        return Empty()


def _image_in(request: pb.CreateImageRequest | pb.UpdateImageRequest) -> Image:
    if not request.HasField("image"):
        raise InvalidArgument("the request has no image")
    return wire.image_of(request.image)


def _epoch_in(request: pb.CreateImageRequest | pb.UpdateImageRequest) -> int | None:
    if not request.HasField("source_date_epoch"):
        return None
    epoch = common.nanoseconds(request.source_date_epoch)
    if abs(epoch) >= _EPOCH_LIMIT:
        raise InvalidArgument("source_date_epoch is out of the range of a time stamp (1678 to 2261)")
    return epoch
