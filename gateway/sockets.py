"""The socket on which a gateway process listens: its own, or one that whoever started it holds open. A leaf."""

from __future__ import annotations

import errno
import socket

from gateway.errors import ConfigurationError


def bound(host: str, port: int) -> socket.socket:
    """A socket on `host` and `port` (0: any free one). Raise ConfigurationError where that is not possible.

    Several processes may listen on one port: the kernel spreads connections over them.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    listening.setblocking(False)
    return listening


def inherited(descriptor: int) -> socket.socket:
    """The bound TCP socket that this process was started with. Raise ConfigurationError if it is none."""
    try:
        listening = socket.socket(fileno=descriptor)
        if listening.type != socket.SOCK_STREAM or not listening.getsockname()[1]:
            raise OSError(errno.EINVAL, "it is not a bound TCP socket")
    except OSError as error:
        raise ConfigurationError(f"--fd: cannot listen on descriptor {descriptor}: {error.strerror}") from None
    listening.setblocking(False)
    return listening
