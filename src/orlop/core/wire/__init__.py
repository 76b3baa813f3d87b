"""Nouns as messages of `api/` and back: one module a noun, shared by the services and the client library."""
