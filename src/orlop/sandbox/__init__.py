"""Sandbox controllers: groups of containers that share one shim or one set of namespaces."""
