"""Registries over HTTP: references, hosts and credentials, resolve, fetch and push (OCI distribution-spec)."""
