"""The content store's files: blobs by digest, and the ingests that become blobs."""
