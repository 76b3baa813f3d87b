"""OCI and Docker image documents, unpacking, import and export, over any content, image and snapshot store."""
