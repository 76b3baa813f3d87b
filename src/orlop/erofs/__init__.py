"""EROFS images that hold metadata only: names, inodes and where in other files their data lies."""
