"""Layers: the tar stream, read safely, applied to a directory, made by comparing two, compressed and decompressed."""
