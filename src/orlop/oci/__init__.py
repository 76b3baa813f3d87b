"""Runtime-spec documents: what a container is to the OCI runtime."""
