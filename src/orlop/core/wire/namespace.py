"""Namespaces on the wire."""

from __future__ import annotations

from orlop.api.services.namespaces.v1 import namespace_pb2 as pb
from orlop.core.namespace import Namespace


def namespace(noun: Namespace) -> pb.Namespace:
    return pb.Namespace(name=noun.name, labels=dict(noun.labels))


def namespace_of(message: pb.Namespace) -> Namespace:
    return Namespace(message.name, dict(message.labels))
