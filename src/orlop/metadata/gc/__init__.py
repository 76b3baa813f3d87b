"""The garbage collector: mark and sweep over the records of all namespaces, then over the files behind them.

What keeps what alive is containerd's rule (its docs/garbage-collection.md): leases, images, containers, sandboxes and
labelled objects are roots; labels are edges; an edge never leaves its namespace.
"""
