"""Seccomp filters that crun has compiled, for the containers that want the same.

To compile a profile such as Docker's, libseccomp takes 11 ms, a fifth of a container's start, and a host has few
profiles. crun leaves what it loaded in the container's state (`seccomp.bpf`), and loads what the annotation
`run.oci.seccomp_bpf_data` has in its place, in base64; the flags stay those of the profile. crun's own cache of filters
needs libgcrypt, which distributions build it without.
"""

from __future__ import annotations

import base64
import logging
import os
from collections import OrderedDict

import msgspec

log = logging.getLogger(__name__)

ANNOTATION = "run.oci.seccomp_bpf_data"
STATE_FILE = "seccomp.bpf"
_OPTIONS = "run.oci.seccomp"
"""What the annotations begin with that change what crun makes of a profile."""
_NOTIFIES = (b"SCMP_ACT_NOTIFY", b"listener")
_INSTRUCTION = 8
_LONGEST = 4096 * _INSTRUCTION
"""Bytes that the kernel takes (BPF_MAXINSNS)."""


class _Linux(msgspec.Struct):
    seccomp: msgspec.Raw = msgspec.Raw(b"null")


class _Spec(msgspec.Struct):
    linux: _Linux | None = None
    annotations: dict[str, str] | None = None


class SeccompFilters:
    """At most `limit` filters, by the text of their profiles, while the daemon runs."""

    def __init__(self, limit: int = 16) -> None:
        self._limit = limit
        self._filters: OrderedDict[bytes, str] = OrderedDict()

    def applied(self, spec: bytes) -> tuple[bytes, bytes | None]:
        """`spec` with the filter of its profile if that is known, else as it is and the profile to `learn`, if any."""
        try:
            document = msgspec.json.decode(spec, type=_Spec)
        except msgspec.MsgspecError:
            return spec, None
        annotations = document.annotations or {}
        profile = bytes(document.linux.seccomp) if document.linux is not None else b"null"
        if profile == b"null" or any(text in profile for text in _NOTIFIES):
            return spec, None
        if any(name.startswith(_OPTIONS) for name in annotations):
            return spec, None
        known = self._filters.get(profile)
        if known is None:
            return spec, profile
        self._filters.move_to_end(profile)
        fields = msgspec.json.decode(spec, type=dict[str, msgspec.Raw])
        fields["annotations"] = msgspec.Raw(msgspec.json.encode(annotations | {ANNOTATION: known}))
        return msgspec.json.encode(fields), None

    def learn(self, profile: bytes, state: str) -> None:
        """Takes up the filter of `profile` from the directory `state` of a container that crun has created with it."""
        try:
            with open(os.path.join(state, STATE_FILE), "rb") as file:
                compiled = file.read(_LONGEST + 1)
        except OSError as error:
            log.debug("no seccomp filter to be had from %s: %s", state, error)
            return
        if not compiled or len(compiled) > _LONGEST or len(compiled) % _INSTRUCTION:
            log.warning("%s/%s is no seccomp filter: %d bytes", state, STATE_FILE, len(compiled))
            return
        self._filters[profile] = base64.b64encode(compiled).decode("ascii")
        if len(self._filters) > self._limit:
            self._filters.popitem(last=False)
