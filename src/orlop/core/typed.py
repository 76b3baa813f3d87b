"""A value of a type that only its reader knows: protobuf's `Any`, without protobuf."""

from __future__ import annotations

from dataclasses import dataclass

SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
FEATURES_URL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


@dataclass(frozen=True, slots=True)
class Typed:
    """`value` encoded as `type_url` says. URLs are bare message names or the `types.containerd.io/` ones above."""

    type_url: str
    value: bytes

    @property
    def type_name(self) -> str:
        """The URL without a `type.googleapis.com/` prefix, which some senders add."""
        return self.type_url.removeprefix("type.googleapis.com/")
