"""The headers by which a call names its namespace and lease."""

from __future__ import annotations

from functools import lru_cache

from orlop.core import identifiers
from orlop.core.scope import Scope
from orlop.errors import FailedPrecondition
from orlop.rpc.service import Call

NAMESPACE_HEADER = "containerd-namespace"
NAMESPACE_TTRPC_HEADER = "containerd-namespace-ttrpc"
LEASE_HEADER = "containerd-lease"


def namespace_of(call: Call) -> str:
    """The namespace of `call`. Raises FailedPrecondition if it is missing, InvalidArgument if it is malformed."""
    name = call.metadata.get(NAMESPACE_HEADER) or call.metadata.get(NAMESPACE_TTRPC_HEADER)
    if not name:
        raise FailedPrecondition("namespace is required")
    return identifiers.validate(name, "namespace validation")


def scope_of(call: Call) -> Scope:
    """The scope of `call`; raises as `namespace_of`."""
    return _scope(namespace_of(call), call.metadata.get(LEASE_HEADER, ""))


_scope = lru_cache(maxsize=64)(Scope)
"""The calls of a client share theirs."""


def headers_of(scope: Scope) -> dict[str, str]:
    """What a client sends so that its call has `scope`."""
    headers = {NAMESPACE_HEADER: scope.namespace, NAMESPACE_TTRPC_HEADER: scope.namespace}
    if scope.lease:
        headers[LEASE_HEADER] = scope.lease
    return headers
