"""Media types of image documents (OCI image-spec, media-types.md; Docker image manifest V2, schema 2)."""

from __future__ import annotations

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"

DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD = "application/vnd.docker.image.rootfs.diff.tar.zstd"

CHECKPOINT = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
CHECKPOINT_CONFIG = "application/vnd.containerd.container.checkpoint.config.v1+proto"
EROFS_LAYER = "application/vnd.erofs.layer.v1"
ATTESTATION = "application/vnd.in-toto+json"

INDEXES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})
KNOWN_CONFIGS = CONFIGS | {CHECKPOINT, CHECKPOINT_CONFIG}
SCHEMA_1 = frozenset(f"application/vnd.docker.distribution.manifest.v1+{suffix}" for suffix in ("json", "prettyjws"))


def is_index(media_type: str) -> bool:
    return media_type in INDEXES


def is_manifest(media_type: str) -> bool:
    return media_type in MANIFESTS


def is_layer(media_type: str) -> bool:
    """Whether it is a layer of a file system, however packed."""
    return media_type.startswith("application/vnd.oci.image.layer.") or media_type.partition("+")[0] in _LAYERS


def is_non_distributable(media_type: str) -> bool:
    """Whether it is a layer that only its makers may hand out."""
    return media_type.startswith(_NON_DISTRIBUTABLE)


def ref_prefix(media_type: str) -> str:
    """How clients begin the ref of an ingest of this type."""
    if is_manifest(media_type):
        return "manifest-"
    if is_index(media_type):
        return "index-"
    if is_layer(media_type):
        return "layer-"
    if media_type in KNOWN_CONFIGS:
        return "config-"
    return "attestation-" if media_type == ATTESTATION else "unknown-"


_LAYERS = frozenset(
    {
        DOCKER_LAYER,
        DOCKER_LAYER_GZIP,
        DOCKER_LAYER_ZSTD,
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        EROFS_LAYER,
    }
)
_NON_DISTRIBUTABLE = (
    "application/vnd.oci.image.layer.nondistributable.",
    "application/vnd.docker.image.rootfs.foreign.",
)
