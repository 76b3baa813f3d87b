"""What a server makes of the frames that a client sends: the checks that both of our servers share."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from orlop.api.ttrpc.request_pb2 import Request
from orlop.errors import InvalidArgument, ResourceExhausted
from orlop.rpc.ttrpc.frame import DATA, REQUEST, Frame, oversize_text


class RequestReader:
    """The requests of one connection. `last_stream` is that of the latest: streams only go up."""

    __slots__ = ("last_stream",)

    def __init__(self, last_stream: int = 0) -> None:
        self.last_stream = last_stream

    def read(self, frame: Frame) -> Request | None:
        """The request in `frame`; None if it is of a kind that a later version may bring.

        Raises ResourceExhausted for one that is too large, and InvalidArgument.
        """
        if frame.oversize:
            raise ResourceExhausted.verbatim(oversize_text(frame.oversize))
        if frame.stream % 2 != 1:
            raise InvalidArgument.verbatim("StreamID must be odd for client initiated streams")
        if frame.kind == DATA:
            raise InvalidArgument.verbatim("StreamID is no longer active")
        if frame.kind != REQUEST:
            return None
        if frame.stream <= self.last_stream:
            raise InvalidArgument.verbatim("StreamID cannot be re-used and must increment")
        self.last_stream = frame.stream
        try:
            return Request.FromString(frame.payload)
        except DecodeError:
            raise InvalidArgument.verbatim("unmarshal request error: cannot parse invalid wire-format data") from None
