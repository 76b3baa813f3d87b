"""All registries, for all operations of the daemon: one pool of connections, one store of tokens, one set of limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orlop.core.reference import Reference
from orlop.core.registry import Credentials, RegistryOptions
from orlop.registry.settings import Settings

if TYPE_CHECKING:
    from orlop.registry.bandwidth import Bandwidth, Budget
    from orlop.registry.hosts import Host
    from orlop.registry.repository import HostedRepository
    from orlop.registry.tokens import Tokens
    from orlop.registry.transport import Transport


class HttpRegistries:
    """`Registries` over HTTP. The HTTP library is loaded with the first repository."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        self._shared: _Shared | None = None

    def repository(self, reference: str, options: RegistryOptions) -> HostedRepository:
        """Raises InvalidArgument for what is no full reference, and for a `hosts.toml` that is wrong."""
        from orlop.registry.endpoint import Endpoint
        from orlop.registry.hosts_file import hosts_of
        from orlop.registry.repository import HostedRepository

        name = Reference.parse(reference)
        directories = (options.host_dir,) if options.host_dir else self._settings.host_dirs
        shared = self._opened()
        transport, tokens, settings = shared.transport, shared.tokens, self._settings
        credentials = options.credentials or self._own_credentials()
        endpoints = [
            Endpoint(host, name, options, credentials, transport, tokens, settings)
            for host in hosts_of(name.host, directories, options.default_scheme)
        ]

        def anonymous(host: Host) -> Endpoint:
            return Endpoint(host, name, RegistryOptions(log=options.log), None, transport, tokens, settings)

        return HostedRepository(name, endpoints, anonymous, settings, shared.extra, shared.bandwidth)

    async def close(self) -> None:
        if self._shared is not None:
            await self._shared.transport.close()

    def _own_credentials(self) -> Credentials | None:
        if not self._settings.credentials_file:
            return None
        from orlop.registry.docker_config import DockerConfig

        return DockerConfig(self._settings.credentials_file)

    def _opened(self) -> _Shared:
        if self._shared is None:
            self._shared = _Shared(self._settings)
        return self._shared


class _Shared:
    transport: Transport
    tokens: Tokens
    extra: Budget
    bandwidth: Bandwidth

    def __init__(self, settings: Settings) -> None:
        from orlop.registry.bandwidth import Bandwidth, Budget
        from orlop.registry.tokens import Tokens
        from orlop.registry.transport import Transport

        self.transport = Transport(settings)
        self.tokens = Tokens(self.transport, settings)
        self.extra = Budget(settings.extra_ranges)
        self.bandwidth = Bandwidth(settings.bandwidth)
