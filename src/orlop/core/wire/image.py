"""Images on the wire."""

from __future__ import annotations

from orlop.api.services.images.v1 import images_pb2 as pb
from orlop.core.image import Image
from orlop.core.wire import common


def image(noun: Image) -> pb.Image:
    return pb.Image(
        name=noun.name,
        labels=dict(noun.labels),
        target=common.descriptor(noun.target),
        created_at=common.timestamp(noun.created_at),
        updated_at=common.timestamp(noun.updated_at),
    )


def image_of(message: pb.Image) -> Image:
    """A target that is not set has no digest; whether that is allowed is the store's to say."""
    return Image(
        name=message.name,
        target=common.descriptor_of(message.target),
        labels=dict(message.labels),
        created_at=common.nanoseconds(message.created_at),
        updated_at=common.nanoseconds(message.updated_at),
    )
