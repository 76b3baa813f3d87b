"""Snapshotters: drivers that keep layered file systems on a local disk and tell how to mount them."""
