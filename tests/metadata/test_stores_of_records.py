"""Namespaces, containers, images and sandboxes: what is kept, what is told, and every refusal."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest

from orlop.core.container import Container, Runtime
from orlop.core.descriptor import Descriptor
from orlop.core.image import Image
from orlop.core.namespace import Namespace
from orlop.core.sandbox import Sandbox
from orlop.core.scope import Scope
from orlop.core.typed import Typed
from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OrlopError, Unknown
from orlop.metadata.containers import ContainerStore
from orlop.metadata.database import Database
from orlop.metadata.images import ImageStore
from orlop.metadata.leases import Leases
from orlop.metadata.namespaces import NamespaceStore
from orlop.metadata.sandboxes import SandboxStore
from orlop.metadata.schema import MIGRATIONS

NS = Scope("n")
TARGET = Descriptor("application/vnd.oci.image.index.v1+json", "sha256:" + "a" * 64, 7, {"k": "v"})
SPEC = Typed("types.containerd.io/x", b"\0\xff")


class Stores:
    def __init__(self, path):
        self.events = []
        self.db = Database(path, MIGRATIONS, sync=False)
        self.namespaces = NamespaceStore(self.db, self)
        self.containers = ContainerStore(self.db, self)
        self.images = ImageStore(self.db, self)
        self.sandboxes = SandboxStore(self.db, self)
        self.leases = Leases(self.db)

    def publish(self, namespace, topic, payload):
        self.events.append((namespace, topic, payload))


@pytest.fixture
def stores(tmp_path):
    made = Stores(tmp_path / "meta.db")
    yield made
    made.db.close()


@contextlib.contextmanager
def refused(kind, text):
    with pytest.raises(OrlopError) as caught:
        yield
    assert (type(caught.value), str(caught.value)) == (kind, text)


def container(id="c", **fields):
    return Container(id=id, runtime=fields.pop("runtime", Runtime("io.containerd.runc.v2")), **fields)


async def test_a_namespace_is_made_listed_and_deleted(stores):
    await stores.namespaces.create(Namespace("b", {"k": "v", "empty": ""}))
    await stores.namespaces.create(Namespace("a"))
    assert [space.name for space in await stores.namespaces.list()] == ["a", "b"]
    assert (await stores.namespaces.get("b")).labels == {"k": "v"}
    assert (await stores.namespaces.get("bad name")).labels == {}
    with refused(AlreadyExists, 'namespace "a": already exists'):
        await stores.namespaces.create(Namespace("a"))
    await stores.namespaces.delete("a")
    with refused(NotFound, 'namespace "a": not found'):
        await stores.namespaces.delete("a")
    assert [(space, topic) for space, topic, _ in stores.events] == [
        ("b", "/namespaces/create"),
        ("a", "/namespaces/create"),
        ("a", "/namespaces/delete"),
    ]


async def test_namespace_labels_are_updated_by_mask_or_as_a_whole(stores):
    await stores.namespaces.update(Namespace("n", {"a.b/c": "1", "x": "2"}), None)
    await stores.namespaces.update(Namespace("n", {"a.b/c": "3"}), ["labels.a.b/c", "labels.x"])
    assert (await stores.namespaces.get("n")).labels == {"a.b/c": "3"}
    with refused(InvalidArgument, 'cannot update "labels" field'):
        await stores.namespaces.update(Namespace("n", {}), ["labels"])
    with pytest.raises(Unknown):
        await stores.namespaces.update(Namespace("n", {"k": "x" * 4096}), None)


async def test_a_namespace_that_holds_something_is_not_deleted_and_leases_do_not_count(stores):
    await stores.images.create(NS, Image("i", TARGET))
    await stores.containers.create(NS, container())
    await stores.leases.create(NS, "l")
    await stores.sandboxes.create(NS, Sandbox("s", Runtime("r")))
    with refused(
        FailedPrecondition,
        'namespace "n" must be empty, but it still has images, containers: failed precondition',
    ):
        await stores.namespaces.delete("n")
    await stores.images.delete(NS, "i")
    await stores.containers.delete(NS, "c")
    await stores.namespaces.delete("n")
    assert await stores.leases.list(NS) == []
    assert await stores.sandboxes.list(NS) == []


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (container(""), "container.ID: identifier must not be empty"),
        (container(extensions={"": SPEC}), "container.Extension keys must not be zero-length"),
        (container(runtime=Runtime("")), "container.Runtime.Name must be set"),
        (container(snapshot_key="k"), "container.Snapshotter must be set if container.SnapshotKey is set"),
    ],
)
async def test_a_container_that_is_not_valid_is_refused_by_field(stores, wrong, text):
    with refused(InvalidArgument, f"create container failed validation: {text}: invalid argument"):
        await stores.containers.create(NS, wrong)


async def test_a_container_reads_back_as_it_was_stored(stores):
    whole = container(
        runtime=Runtime("r", SPEC), labels={"k": "v"}, image="i", spec=SPEC, snapshotter="s", snapshot_key="k",
        sandbox="b", extensions={"e": SPEC, "empty": Typed("", b"")},
    )  # fmt: skip
    made = await stores.containers.create(NS, whole)
    assert made.created_at == made.updated_at > 0
    assert await stores.containers.get(NS, "c") == made
    assert replace(made, created_at=0, updated_at=0) == whole
    with refused(AlreadyExists, 'container "c": already exists'):
        await stores.containers.create(NS, whole)
    namespace, topic, event = stores.events[-1]
    assert (namespace, topic, event.id, event.runtime.options.type_url) == (
        "n",
        "/containers/create",
        "c",
        SPEC.type_url,
    )


async def test_what_is_said_of_a_missing_container_depends_on_whether_there_ever_was_one(stores):
    with refused(NotFound, 'container "c" in namespace "n": not found'):
        await stores.containers.get(NS, "c")
    with refused(NotFound, 'cannot update container "c" in namespace "n": not found'):
        await stores.containers.update(NS, container(), None)
    with refused(NotFound, 'cannot delete container "c" in namespace "n": not found'):
        await stores.containers.delete(NS, "c")
    await stores.containers.create(NS, container())
    await stores.containers.delete(NS, "c")
    with refused(NotFound, 'container "c": not found'):
        await stores.containers.update(NS, container(), None)
    with refused(NotFound, "container c: not found"):
        await stores.containers.delete(NS, "c")


async def test_container_masks_change_what_they_name(stores):
    await stores.containers.create(
        NS, container(labels={"a": "1", "b.c/d": "2"}, spec=SPEC, snapshotter="s", snapshot_key="k", image="i")
    )
    new = container(labels={"a": "9"}, image="j", snapshot_key="m")
    updated = await stores.containers.update(NS, new, ["labels.b.c/d", "spec", "snapshotkey", "extensions.e"])
    assert (updated.labels, updated.spec, updated.snapshot_key, updated.image) == ({"a": "1"}, None, "m", "i")
    assert updated.extensions == {"e": Typed("", b"")}
    assert await stores.containers.get(NS, "c") == updated
    for path in ("runtime", "snapshot_key", "sandbox", "label"):
        with refused(InvalidArgument, f'cannot update "{path}" field on "c": invalid argument'):
            await stores.containers.update(NS, new, [path])
    with refused(InvalidArgument, "container.Snapshotter field is immutable: invalid argument"):
        await stores.containers.update(NS, new, None)
    with refused(InvalidArgument, "container.Runtime.Name field is immutable: invalid argument"):
        await stores.containers.update(NS, replace(new, snapshotter="s", runtime=Runtime("x")), None)
    with refused(InvalidArgument, "Container.ID required"):
        await stores.containers.update(NS, container(""), None)
    replaced = await stores.containers.update(NS, replace(new, snapshotter="s"), None)
    assert (replaced.labels, replaced.image, replaced.extensions) == ({"a": "9"}, "j", {})


async def test_lists_are_filtered_sorted_and_kept_apart_by_namespace(stores):
    for id in ("b", "a", "C"):
        await stores.containers.create(NS, container(id, labels={"only": id}))
    await stores.containers.create(Scope("other"), container("z"))
    assert [found.id for found in await stores.containers.list(NS)] == ["C", "a", "b"]
    found = await stores.containers.list(NS, ["labels.only==a", "id~=^C", "runtime.name==nothing"])
    assert [each.id for each in found] == ["C", "a"]
    for store in (stores.containers, stores.images, stores.sandboxes):
        with pytest.raises(InvalidArgument, match=r"\[id= >\|\|< \]|: invalid argument: invalid argument$"):
            await store.list(NS, ["id="])


async def test_a_damaged_row_is_left_out_of_lists(stores):
    await stores.containers.create(NS, container("bad"))
    await stores.containers.create(NS, container("good"))
    stores.db.write_now(lambda db: db.execute("UPDATE containers SET labels = '{' WHERE id = 'bad'") and None)
    assert [found.id for found in await stores.containers.list(NS)] == ["good"]
    await stores.containers.delete(NS, "bad")


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (Image("", TARGET), "Image.Name required"),
        (
            Image("i", replace(TARGET, digest="x")),
            'target.Digest "x" invalid: invalid checksum digest format: invalid argument',
        ),
        (Image("i", replace(TARGET, size=0)), "target.Size must be greater than zero: invalid argument"),
        (Image("i", replace(TARGET, media_type="")), "target.MediaType must be set: invalid argument"),
    ],
)
async def test_an_image_that_is_not_valid_is_refused_by_field(stores, wrong, text):
    with refused(InvalidArgument, text):
        await stores.images.create(NS, wrong)


async def test_an_image_lives_through_create_update_and_delete(stores):
    made = await stores.images.create(NS, Image("i", TARGET, {"a": "1"}), epoch=5)
    assert (made.created_at, made.updated_at) == (5, 5)
    assert await stores.images.get(NS, "i") == made
    with refused(AlreadyExists, 'image "i": already exists'):
        await stores.images.create(NS, made)
    new = Image("i", replace(TARGET, digest="sha256:" + "b" * 64, annotations={}), {"b": "2"})
    assert (await stores.images.update(NS, new, ["annotations.k", "labels.b"])).target.annotations == {}
    updated = await stores.images.update(NS, new, None, epoch=9)
    assert (updated.created_at, updated.updated_at, updated.labels) == (5, 9, {"b": "2"})
    with refused(InvalidArgument, 'cannot update "name" field on image "i": invalid argument'):
        await stores.images.update(NS, new, ["name"])
    with refused(NotFound, f'image "i" has target {new.target.digest}, not {TARGET.digest}: not found'):
        await stores.images.delete(NS, "i", target=TARGET)
    collected = []

    async def collect():
        collected.append(stores.events[-1][1])

    stores.images.collect = collect
    await stores.images.delete(NS, "i", target=new.target, sync=True)
    assert collected == ["/images/delete"]
    with refused(NotFound, 'image "i": not found'):
        await stores.images.delete(NS, "i")
    assert stores.events[0][2].DESCRIPTOR.full_name == "containerd.services.images.v1.ImageCreate"


async def test_an_image_joins_its_lease_only_if_it_can_expire(stores):
    leased = Scope("n", "l")
    await stores.images.create(leased, Image("kept", TARGET))
    expiring = Image("i", TARGET, {"containerd.io/gc.expire": "2030-01-01T00:00:00Z"})
    with refused(NotFound, "lease does not exist: not found"):
        await stores.images.create(leased, expiring)
    await stores.leases.create(NS, "l")
    await stores.images.create(leased, expiring)
    assert [(held.type, held.id) for held in await stores.leases.resources(NS, "l")] == [("images", "i")]
    await stores.images.delete(leased, "i")
    assert await stores.leases.resources(NS, "l") == []


async def test_a_sandbox_lives_through_create_update_and_delete(stores):
    with refused(NotFound, "no sandbox buckets: not found"):
        await stores.sandboxes.delete(NS, "s")
    with pytest.raises(InvalidArgument, match=r"^failed to validate sandbox: invalid sandbox ID: identifier"):
        await stores.sandboxes.create(NS, Sandbox("", Runtime("")))
    made = await stores.sandboxes.create(NS, Sandbox("s", Runtime("r", SPEC), SPEC, {"a": "1"}, {"e": SPEC}, "shim"))
    assert await stores.sandboxes.get(NS, "s") == made
    with refused(AlreadyExists, 'write error: sandbox bucket "s" already exists: already exists'):
        await stores.sandboxes.create(NS, made)
    with refused(NotFound, 'bucket "t" not found: not found'):
        await stores.sandboxes.get(NS, "t")
    with refused(NotFound, 'failed to delete sandbox "t": not found'):
        await stores.sandboxes.delete(NS, "t")
    with refused(InvalidArgument, "sandbox.Runtime.Name field is immutable: invalid argument"):
        await stores.sandboxes.update(NS, replace(made, runtime=Runtime("x")), [])
    with refused(InvalidArgument, 'cannot update "sandboxer" field on sandbox "s": invalid argument'):
        await stores.sandboxes.update(NS, made, ["sandboxer"])
    updated = await stores.sandboxes.update(NS, Sandbox("s", Runtime("x"), labels={"b": "2"}), ["labels.b", "runtime"])
    assert (updated.labels, updated.runtime, updated.spec) == ({"a": "1", "b": "2"}, Runtime("x"), SPEC)
    await stores.sandboxes.delete(NS, "s")
    assert await stores.sandboxes.list(NS) == []
    assert stores.events == []
