"""The graph of all objects, read from the database in one go, and what is reachable in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import apsw
import msgspec

from orlop.metadata.gc import references
from orlop.metadata.gc.references import Condition, Kind, Node, References

TABLES = {
    "leases": Kind.LEASE,
    "images": Kind.IMAGE,
    "blobs": Kind.CONTENT,
    "snapshots": Kind.SNAPSHOT,
    "ingests": Kind.INGEST,
    "containers": Kind.CONTAINER,
    "sandboxes": Kind.SANDBOX,
    "mounts": Kind.MOUNT,
}
"""The tables of nodes. Rows of containers and sandboxes are never collected."""

COLLECTABLE = ("leases", "images", "blobs", "snapshots", "ingests", "mounts")

# Leases come before their resources.
_COLUMNS = {
    "leases": ("row", "namespace", "id", "labels"),
    "lease_resources": ("row", "namespace", "lease", "type", "id"),
    "images": ("row", "namespace", "name", "labels", "digest"),
    "blobs": ("row", "namespace", "digest", "labels"),
    "ingests": ("row", "namespace", "ref", "expected", "expires_at"),
    "snapshots": ("row", "namespace", "snapshotter", "name", "parent", "labels"),
    "containers": ("row", "namespace", "id", "labels", "snapshotter", "snapshot_key"),
    "sandboxes": ("row", "namespace", "id", "labels"),
    "mounts": ("row", "namespace", "name", "labels", "lease", "active"),
}

_labels = msgspec.json.Decoder(dict[str, str])


@dataclass(slots=True)
class Graph:
    """Nodes with their rows, edges out of them, and the roots, as of one moment (`now`, nanoseconds)."""

    now: int
    rows: dict[Node, tuple[str, int]] = field(default_factory=dict)
    edges: dict[Node, list[Node]] = field(default_factory=lambda: defaultdict(list))
    flat_edges: dict[Node, list[Node]] = field(default_factory=dict)
    roots: list[Node] = field(default_factory=list)
    flat_roots: list[Node] = field(default_factory=list)
    _conditions: list[tuple[Node, Condition]] = field(default_factory=list)
    _used_at: dict[Node, int] = field(default_factory=dict)
    leased: list[Node] = field(default_factory=list)
    """What leases list, whether they have expired or not."""
    _held: dict[tuple[str, str], list[Node]] = field(default_factory=dict)

    @classmethod
    def read(cls, connection: apsw.Connection, now: int) -> Graph:
        """Reads every record, inside the caller's transaction."""
        graph = cls(now)
        for table in _COLUMNS:
            graph.read_table(connection, table)
        for node, condition in graph._conditions:
            used_at = graph._used_at.get(condition.node)
            if used_at is not None and condition.holds(used_at, now):
                graph.edges[node].append(condition.node)
        return graph

    def reachable(self, extra_roots: Iterable[Node] = ()) -> set[Node]:
        """Every node that a root keeps alive. What only a flat lease holds keeps little else alive."""
        marked: set[Node] = set()
        pending = [*self.roots, *extra_roots]
        while pending:
            node = pending.pop()
            if node not in marked:
                marked.add(node)
                pending.extend(self.edges.get(node, ()))
        flat: set[Node] = set()
        pending = list(self.flat_roots)
        while pending:
            node = pending.pop()
            if node not in marked and node not in flat:
                flat.add(node)
                pending.extend(self.flat_edges.get(node, ()))
        return marked | flat

    def garbage(self, extra_roots: Iterable[Node] = ()) -> list[tuple[str, int, Node]]:
        """The rows (table, row, node) that nothing keeps alive."""
        marked = self.reachable(extra_roots)
        return [
            (table, row, node)
            for node, (table, row) in self.rows.items()
            if table in COLLECTABLE and node not in marked
        ]

    def read_table(self, connection: apsw.Connection, table: str, rows: Sequence[int] | None = None) -> None:
        """Reads the records of `table`, or only those of `rows`."""
        where, values = "", tuple(rows or ())
        if rows is not None:
            where = f" WHERE row IN ({','.join('?' * len(values))})"
        columns = ", ".join(_COLUMNS[table])
        read = getattr(self, f"_add_{table}")
        for record in connection.execute(f"SELECT {columns} FROM {table}{where}", values):
            read(*record)

    def _add(self, node: Node, table: str, row: int, labels: str) -> tuple[dict[str, str], References]:
        self.rows[node] = (table, row)
        if labels == "{}":
            return {}, References()
        decoded = _labels.decode(labels)
        found = references.of_labels(node.namespace, decoded)
        self.edges[node].extend(found.keeps)
        for other in found.kept_by:
            self.edges[other].append(node)
        return decoded, found

    def _add_leases(self, row: int, namespace: str, id: str, labels: str) -> None:
        node = Node(Kind.LEASE, namespace, id)
        self.rows[node] = ("leases", row)
        decoded = _labels.decode(labels)
        expires = references.moment(decoded, references.EXPIRE)
        if expires is None or expires >= self.now:
            self.roots.append(node)
            self._held[namespace, id] = self.flat_roots if decoded.get(references.FLAT) else self.roots

    def _add_lease_resources(self, _row: int, namespace: str, lease: str, type: str, id: str) -> None:
        node = _resource(namespace, type, id)
        self.leased.append(node)
        holder = self._held.get((namespace, lease))
        if holder is not None:
            holder.append(node)

    def _add_images(self, row: int, namespace: str, name: str, labels: str, digest: str) -> None:
        node = Node(Kind.IMAGE, namespace, name)
        decoded, found = self._add(node, "images", row, labels)
        target = Node(Kind.CONTENT, namespace, digest)
        self.edges[node].append(target)
        self.flat_edges[node] = [target]
        expires = references.moment(decoded, references.EXPIRE)
        if expires is None or expires >= self.now:
            self.roots.append(node)
        self._conditions.extend((node, condition) for condition in found.conditions)

    def _add_blobs(self, row: int, namespace: str, digest: str, labels: str) -> None:
        node = Node(Kind.CONTENT, namespace, digest)
        _, found = self._add(node, "blobs", row, labels)
        if found.is_root:
            self.roots.append(node)
        self._conditions.extend((node, condition) for condition in found.conditions)

    def _add_ingests(self, row: int, namespace: str, ref: str, expected: str, expires: int | None) -> None:
        node = Node(Kind.INGEST, namespace, ref)
        self.rows[node] = ("ingests", row)
        if expected:
            self.edges[node].append(Node(Kind.CONTENT, namespace, expected))
        if expires is not None and expires >= self.now:
            self.roots.append(node)

    def _add_snapshots(self, row: int, namespace: str, snapshotter: str, name: str, parent: str, labels: str) -> None:
        node = Node(Kind.SNAPSHOT, namespace, f"{snapshotter}/{name}")
        decoded, found = self._add(node, "snapshots", row, labels)
        if parent:
            above = Node(Kind.SNAPSHOT, namespace, f"{snapshotter}/{parent}")
            self.edges[node].append(above)
            self.flat_edges[node] = [above]
        if found.is_root:
            self.roots.append(node)
        used_at = references.moment(decoded, references.USED_AT)
        if used_at is not None:
            self._used_at[node] = used_at

    def _add_containers(self, row: int, namespace: str, id: str, labels: str, snapshotter: str, key: str) -> None:
        node = Node(Kind.CONTAINER, namespace, id)
        self._add(node, "containers", row, labels)
        self.roots.append(node)
        if key:
            self.edges[node].append(Node(Kind.SNAPSHOT, namespace, f"{snapshotter}/{key}"))

    def _add_sandboxes(self, row: int, namespace: str, id: str, labels: str) -> None:
        node = Node(Kind.SANDBOX, namespace, id)
        self._add(node, "sandboxes", row, labels)
        self.roots.append(node)

    def _add_mounts(self, row: int, namespace: str, name: str, labels: str, lease: str, active: str | None) -> None:
        node = Node(Kind.MOUNT, namespace, name)
        self._add(node, "mounts", row, labels)
        if lease:
            self.edges[Node(Kind.LEASE, namespace, lease)].append(node)
        if active is None:  # it is being made
            self.roots.append(node)


def _resource(namespace: str, type: str, id: str) -> Node:
    """The node that a lease's resource stands for."""
    if type.startswith("snapshots/"):
        return Node(Kind.SNAPSHOT, namespace, f"{type.removeprefix('snapshots/')}/{id}")
    kind = {"content": Kind.CONTENT, "ingests": Kind.INGEST, "images": Kind.IMAGE}[type]
    return Node(kind, namespace, id)
