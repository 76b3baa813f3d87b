"""The kernel's mount interface: mount and unmount, temporary mounts, overlays of any depth, the mount table."""
