"""Trying credentials at a registry: the API's root, which asks for them where the registry does (distribution-spec)."""

from __future__ import annotations

from collections.abc import Sequence

from orlop.core.reference import Reference, is_host
from orlop.core.registry import Credentials, RegistryOptions
from orlop.errors import InvalidArgument
from orlop.registry.endpoint import Endpoint, failure
from orlop.registry.hosts_file import hosts_of
from orlop.registry.settings import HOST_DIRS, Settings
from orlop.registry.tokens import Tokens
from orlop.registry.transport import Transport


async def check(
    host: str, credentials: Credentials, *, host_dirs: Sequence[str] = HOST_DIRS, default_scheme: str = ""
) -> None:
    """Asks the registry of references to `host` something that needs `credentials`, if anything does.

    Mirrors are not asked. `host_dirs` are the directories of `<host>/hosts.toml`. Raises Unauthenticated or
    PermissionDenied where the credentials are refused, Unavailable where nobody answers, and what else the registry's
    answer stands for.
    """
    if not is_host(host):
        raise InvalidArgument.verbatim(f"{host!r} is no registry: of the form name or name:port")
    settings = Settings()
    transport = Transport(settings)
    try:
        server = hosts_of(host, host_dirs, default_scheme)[-1]
        options = RegistryOptions(default_scheme=default_scheme, credentials=credentials)
        reference = Reference(host, "login")
        endpoint = Endpoint(server, reference, options, credentials, transport, Tokens(transport, settings), settings)
        async with endpoint.request("GET", endpoint.root_url(""), scopes=("",)) as answer:
            if answer.status >= 300:
                raise await failure(answer)
    finally:
        await transport.close()
