"""Transports: gRPC and ttrpc servers and clients, and the mapping of errors to statuses."""
