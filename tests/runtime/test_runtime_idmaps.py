"""Mounts with mapped ids: which specs have them, and which runtimes can."""

from __future__ import annotations

import json

import pytest

from orlop.errors import FailedPrecondition
from orlop.runtime import idmaps

MAPPING = [{"containerID": 0, "hostID": 1000, "size": 1}]


def spec(**mount: object) -> bytes:
    plain = {"destination": "/proc", "type": "proc", "options": ["nosuid"]}
    return json.dumps({"ociVersion": "1.1.0", "mounts": [plain, {"destination": "/data"} | mount]}).encode()


@pytest.mark.parametrize("mount", [{"uidMappings": MAPPING}, {"gidMappings": MAPPING}, {"options": ["rbind", "idmap"]},
                                   {"options": ["ridmap"]}])  # fmt: skip
def test_a_mapped_mount_is_found(mount: dict[str, object]) -> None:
    assert idmaps.first_mapped(spec(**mount)) == "/data"


def test_a_user_namespace_alone_maps_no_mount() -> None:
    document = json.dumps({"mounts": None, "linux": {"uidMappings": MAPPING}}).encode()
    for other in (None, b"", b"no JSON idmap", document, spec(options=["rbind"]), spec(uidMappings=[])):
        assert idmaps.first_mapped(other) == ""


@pytest.mark.parametrize(
    "features",
    [None, b"", b"[]", b"{}", b'{"linux":{}}', b'{"linux":{"mountExtensions":{"idmap":{"enabled":false}}}}'],
)
def test_a_runtime_that_does_not_say_it_can_is_refused(features: bytes | None) -> None:
    with pytest.raises(FailedPrecondition, match='mount "/data" with mapped ids: the runtime "runc"'):
        idmaps.refuse_unless_able("/data", "runc", features)


def test_a_runtime_that_can_is_asked() -> None:
    idmaps.refuse_unless_able("/data", "runc", b'{"linux":{"mountExtensions":{"idmap":{"enabled":true}}}}')
