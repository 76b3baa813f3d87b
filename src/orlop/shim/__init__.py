"""The process that supervises a container, and the server that forks such processes.

A shim outlives the daemon: it drives the OCI runtime, reaps what the container leaves, holds its streams, and serves
the Task service over ttrpc until its last container is deleted. The rules are those of the shim v2 contract.
"""
