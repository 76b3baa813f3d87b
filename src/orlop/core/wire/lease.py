"""Leases as messages of `containerd.services.leases.v1`."""

from __future__ import annotations

from orlop.api.services.leases.v1 import leases_pb2
from orlop.core.lease import Lease, Resource
from orlop.core.wire.common import nanoseconds, timestamp


def lease(noun: Lease) -> leases_pb2.Lease:
    return leases_pb2.Lease(id=noun.id, created_at=timestamp(noun.created_at), labels=dict(noun.labels))


def lease_of(message: leases_pb2.Lease) -> Lease:
    return Lease(message.id, dict(message.labels), nanoseconds(message.created_at))


def resource(noun: Resource) -> leases_pb2.Resource:
    return leases_pb2.Resource(id=noun.id, type=noun.type)


def resource_of(message: leases_pb2.Resource) -> Resource:
    return Resource(message.type, message.id)
