"""Unix sockets that listen, of the owner and with the mode that the configuration says."""

from __future__ import annotations

import os
import socket


def bind(address: str, uid: int, gid: int) -> socket.socket:
    """A bound socket at `address`, 0660 and owned so; an old file of that name is replaced."""
    from orlop.rpc.server import prepare_socket

    prepare_socket(address, uid, gid)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(address)
        os.chmod(address, 0o660)
        os.chown(address, uid, gid)
        listener.listen(512)
    except BaseException:
        listener.close()
        raise
    return listener
