"""Bringing a graph up to date with rows that were written after it was read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import apsw

from orlop.metadata.gc.graph import TABLES, Graph
from orlop.metadata.gc.references import Node

_CHUNK = 400


def refresh(graph: Graph, connection: apsw.Connection, touched: Iterable[tuple[str, int]]) -> list[Node]:
    """Adds the edges of `touched` (table, row) to `graph` and returns their nodes, to be taken as roots.

    Of a resource that was added to a lease, the node is what it names.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for table, row in touched:
        if table in TABLES or table == "lease_resources":
            rows[table].append(row)
    fresh = Graph(graph.now)
    for table, numbers in rows.items():
        for start in range(0, len(numbers), _CHUNK):
            fresh.read_table(connection, table, numbers[start : start + _CHUNK])
    for node, targets in fresh.edges.items():
        graph.edges[node].extend(targets)
    return [*fresh.rows, *fresh.leased]
