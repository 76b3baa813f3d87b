"""The label grammar of the collector."""

from __future__ import annotations

import pytest

from orlop.metadata.gc.references import Condition, Kind, Node, of_labels

CONTENT = Node(Kind.CONTENT, "ns", "v")
SNAPSHOT = Node(Kind.SNAPSHOT, "ns", "overlayfs/v")


@pytest.mark.parametrize(
    ("label", "node"),
    [
        ("containerd.io/gc.ref.content", CONTENT),
        ("containerd.io/gc.ref.content.config", CONTENT),
        ("containerd.io/gc.ref.content/x", CONTENT),
        ("containerd.io/gc.ref.content.referrer.sha256.abc", CONTENT),
        ("containerd.io/gc.ref.image", Node(Kind.IMAGE, "ns", "v")),
        ("containerd.io/gc.ref.image.x", Node(Kind.IMAGE, "ns", "v")),
        ("containerd.io/gc.ref.snapshot.overlayfs", SNAPSHOT),
        ("containerd.io/gc.ref.snapshot.overlayfs/x", SNAPSHOT),
    ],
)
def test_a_reference_label_keeps_what_it_names(label: str, node: Node) -> None:
    assert of_labels("ns", {label: "v"}).keeps == [node]


@pytest.mark.parametrize(
    "label",
    [
        "containerd.io/gc.ref.contentX",
        "containerd.io/gc.ref.images",
        "containerd.io/gc.ref.container",
        "containerd.io/gc.expire",
        "containerd.io/gc.flat",
        "io.example/gc.ref.content",
    ],
)
def test_a_label_of_another_form_keeps_nothing(label: str) -> None:
    found = of_labels("ns", {label: "v"})
    assert not found.keeps
    assert not found.kept_by
    assert not found.is_root


@pytest.mark.parametrize("kind", ["content", "image", "container"])
def test_a_back_reference_label_names_what_keeps_this_object(kind: str) -> None:
    assert of_labels("ns", {f"containerd.io/gc.bref.{kind}/x": "v"}).kept_by == [Node(Kind(kind), "ns", "v")]


def test_a_root_label_counts_by_prefix_and_an_empty_one_does_not() -> None:
    assert of_labels("ns", {"containerd.io/gc.root": "now"}).is_root
    assert of_labels("ns", {"containerd.io/gc.root.mine": "now"}).is_root
    assert not of_labels("ns", {"containerd.io/gc.root": ""}).is_root


def test_a_condition_compares_the_age_of_use() -> None:
    hour = 3_600_000_000_000
    found = of_labels("ns", {"containerd.io/gc.cond.snapshot.overlayfs/x": "usedat<1h,other>2,usedat>24h|v"})
    assert found.conditions == [Condition(SNAPSHOT, False, hour), Condition(SNAPSHOT, True, 24 * hour)]
    assert found.conditions[0].holds(0, hour - 1)
    assert not found.conditions[0].holds(0, hour)


@pytest.mark.parametrize("value", ["usedat<1h", "usedat=1h|v", "usedat<soon|v", "usedat<=1h|v", "|v", ""])
def test_a_condition_that_cannot_be_read_never_holds(value: str) -> None:
    assert not of_labels("ns", {"containerd.io/gc.cond.snapshot.overlayfs": value}).conditions
