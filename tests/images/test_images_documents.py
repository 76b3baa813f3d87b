"""Image documents as hostile input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from images_world import NS, described, encoded, grown, small_image, world

from orlop.core import digest as digests
from orlop.core import media
from orlop.errors import InvalidArgument, OutOfRange
from orlop.images import documents
from orlop.images.strict_json import CONTAINERS_LIMIT, Document

CONFIG = described(b"{}", media.OCI_CONFIG)


def manifest(**fields: Any) -> bytes:
    return encoded({"schemaVersion": 2, "mediaType": media.OCI_MANIFEST, "config": CONFIG, "layers": []} | fields)


def read_manifest(data: bytes, media_type: str = media.OCI_MANIFEST) -> documents.Manifest:
    return documents.manifest_of(data, media_type, "m")


def read_index(data: bytes, media_type: str = media.OCI_INDEX) -> documents.Index:
    return documents.index_of(data, media_type, "i")


@pytest.mark.parametrize("media_type", [media.OCI_MANIFEST, media.DOCKER_MANIFEST])
def test_a_manifest_is_read(media_type: str) -> None:
    layer = described(b"x", media.OCI_LAYER, annotations={"a": "1"})
    read = read_manifest(manifest(mediaType=media_type, layers=[layer], subject=CONFIG), media_type)
    assert read.config.digest == CONFIG["digest"]
    assert read.layers[0].noun().annotations == {"a": "1"}


@pytest.mark.parametrize("foreign", ["manifests", "Manifests"])
def test_a_manifest_that_is_an_index_too_is_refused(foreign: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot have manifests"):
        read_manifest(manifest(**{foreign: []}))


@pytest.mark.parametrize("foreign", ["layers", "config", "LAYERS"])
def test_an_index_that_is_a_manifest_too_is_refused(foreign: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot have"):
        read_index(encoded({"schemaVersion": 2, "manifests": [], foreign: []}))


def test_a_document_of_another_type_than_its_descriptor_says_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"says it is 'application/vnd\.oci\.image\.manifest\.v1"):
        read_manifest(manifest(), media.DOCKER_MANIFEST)


def test_schema_1_is_refused_by_its_name() -> None:
    for data in (encoded({"schemaVersion": 1, "fsLayers": [], "history": []}), manifest(schemaVersion=1)):
        with pytest.raises(InvalidArgument, match="schema 1 image manifests are no longer supported"):
            read_manifest(data)
    with pytest.raises(InvalidArgument, match="schema 1"):
        read_manifest(manifest(), "application/vnd.docker.distribution.manifest.v1+prettyjws")


@pytest.mark.parametrize(
    "data",
    [
        b'{"layers":[],"layers":[],"config":{}}',
        b'{"layers":[],"Layers":[],"config":{}}',
        b'{"mediaType":"a","MEDIATYPE":"b"}',
        '{"layers":[],"layer\u017f":[]}'.encode(),
        b'{"unknown":1,"Unknown":2}',
        b'{"annotations":{"a":"1","a":"2"}}',
        b'{"unknown":{"a":1,"a":1}}',
    ],
)
def test_a_key_that_comes_twice_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match="comes twice"):
        read_manifest(data)


def test_keys_of_free_maps_differ_by_case() -> None:
    assert read_manifest(manifest(annotations={"a": "1", "A": "2"})).annotations == {"a": "1", "A": "2"}
    config = documents.config_of(encoded({"config": {"Labels": {"Name": "x", "name": "y"}}}), "c")
    assert config.config is not None
    assert config.config.labels == {"Name": "x", "name": "y"}


def test_a_key_in_another_case_and_null_mean_what_they_mean_to_go() -> None:
    config = documents.config_of(
        b'{"OS":"linux","config":{"cmd":["x"],"Env":null,"User":null},"rootfs":{"diff_ids":null}}', "c"
    )
    assert config.os == "linux"
    assert config.config is not None
    assert (config.config.cmd, config.config.env, config.config.user) == (["x"], None, "")
    assert config.rootfs.diff_ids == []
    assert read_manifest(manifest(layers=None)).layers == []


@pytest.mark.parametrize("size", [-1, 2**63, 2**64, 10**29, 1.5, "1", True])
def test_a_size_that_is_no_size_is_refused(size: object) -> None:
    with pytest.raises(InvalidArgument, match=r"^m: "):
        read_manifest(manifest(config=CONFIG | {"size": size}))


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:../../x", "sha256:" + "0" * 63, "sha256:" + "A" * 64, "md5:" + "0" * 32, "x"]
)
def test_a_digest_that_is_no_digest_is_refused_wherever_it_is(digest: str) -> None:
    broken = CONFIG | {"digest": digest}
    for data in (manifest(config=broken), manifest(layers=[broken])):
        with pytest.raises(InvalidArgument, match="digest"):
            read_manifest(data)
    with pytest.raises(InvalidArgument, match="digest"):
        read_index(encoded({"schemaVersion": 2, "manifests": [broken]}))
    with pytest.raises(InvalidArgument, match="diff id"):
        documents.config_of(encoded({"rootfs": {"diff_ids": [digest]}}), "c")


def test_counts_are_bounded() -> None:
    with pytest.raises(InvalidArgument, match="100000 manifests, at most 10000"):
        read_index(encoded({"schemaVersion": 2, "manifests": [CONFIG] * 100_000}))
    with pytest.raises(InvalidArgument, match="1001 layers, at most 1000"):
        read_manifest(manifest(layers=[CONFIG] * 1001))
    with pytest.raises(InvalidArgument, match="diff ids, at most"):
        documents.config_of(encoded({"rootfs": {"diff_ids": [CONFIG["digest"]] * 1001}}), "c")
    with pytest.raises(InvalidArgument, match=f"more than {CONTAINERS_LIMIT} lists and objects"):
        Document.parse(b"[" + b"[]," * CONTAINERS_LIMIT + b"[]]", "d")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"x", b"[]", b"null", b"1", b'"x"', b"{", b'{"a":NaN}', b'{"a":-Infinity}', b"\xff", b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"), b'{"os":"\\ud800"}', b'{"config":{"Env":["\\udfff"]}}', b"{} {}", b'{"a":"\n"}',
        b"[" * 1_000_000, b'{"a":' * 100_000, b'{"a":' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_what_is_no_document_is_refused(data: bytes) -> None:
    for read in (lambda: read_manifest(data), lambda: read_index(data), lambda: documents.config_of(data, "c")):
        with pytest.raises(InvalidArgument):
            read()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["config", "Config", "layers", "manifests", "mediaType", "digest", "size", "rootfs", "x"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(st.one_of(st.binary(max_size=60), JSON.map(lambda value: json.dumps(value).encode())))
def test_any_bytes_are_read_or_refused_as_an_invalid_argument(data: bytes) -> None:
    for read in (read_manifest, read_index, lambda data: documents.config_of(data, "c")):
        try:
            read(data)  # type: ignore[operator]
        except InvalidArgument:
            continue


async def test_a_document_that_is_too_large_or_of_another_size_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        large = await w.put(b" " * (documents.LIMIT + 1), media.OCI_MANIFEST)
        with pytest.raises(OutOfRange, match=f"at most {documents.LIMIT}"):
            await documents.read_manifest(w.content, NS, large)
        data = small_image()[0]
        small = await w.put(data, media.OCI_MANIFEST)
        with pytest.raises(InvalidArgument, match=f"has {len(data)} bytes, its descriptor says 1"):
            await documents.read_manifest(w.content, NS, grown(small, 1))
        assert (await documents.read_manifest(w.content, NS, small)).config.digest == digests.of(small_image()[1])
