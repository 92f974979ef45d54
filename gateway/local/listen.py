"""The port that all gateway workers share: one listening socket a worker, which the supervisor holds open.

The kernel spreads connections over the sockets. A worker inherits the one of its slot; when it ends, however it ends,
who waits in that socket's queue waits for its successor, and nobody else can take the port.
"""

from __future__ import annotations

import errno
import http.client
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from gateway.errors import ConfigurationError

_CONNECT_TIMEOUT_S = 0.5
_READ_TIMEOUT_S = 2.0
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - a name to translate, not to bind


@contextmanager
def slots(host: str, port: int, count: int) -> Iterator[list[socket.socket]]:
    """`count` sockets as `reserve` makes them, on one port. They begin to listen with the first worker of each."""
    with ExitStack() as stack:
        first = stack.enter_context(reserve(host, port))
        more = [stack.enter_context(reserve(host, int(first.getsockname()[1]))) for _ in range(1, count)]
        yield [first, *more]


def reserve(host: str, port: int) -> socket.socket:
    """A socket bound to `host` and `port` (0: any free one) with SO_REUSEPORT. It does not listen and gets nothing.

    Raise ConfigurationError if something listens there already or the address is not ours to use.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        raise ConfigurationError(f"--host: {host!r} is not an address of this machine") from None
    reserved = socket.socket(family, socket.SOCK_STREAM)
    try:
        # With both options, connections of an earlier run that are still closing are no obstacle.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(address)
        # A listener with SO_REUSEPORT, as another gateway of this user is, would share its port with us silently.
        if port and _listens(local_host(host), port):
            raise OSError(errno.EADDRINUSE, "in use")
    except (OSError, OverflowError) as error:
        reserved.close()
        raise ConfigurationError(_explain(error, host, port)) from None
    return reserved


def local_host(host: str) -> str:
    """The address by which this machine reaches a server bound to `host`."""
    return _WILDCARDS.get(host, host)


def url_of(host: str, port: int) -> str:
    """The http:// origin of a server bound to `host` and `port`, as this machine reaches it."""
    name = local_host(host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def ready_status(host: str, port: int) -> str:
    """ "200" if GET /readyz answers so, else what it answered or why it did not. Blocks for up to two seconds."""
    connection = http.client.HTTPConnection(local_host(host), port, timeout=_READ_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz", headers={"connection": "close"})
        response = connection.getresponse()
        text = response.read(500).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        return f"no answer ({error})"
    finally:
        connection.close()
    return "200" if response.status == 200 else f"{response.status} {text.strip()}"


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), _CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _explain(error: Exception, host: str, port: int) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return f"port {port} of {host} is taken by another program: choose one with --port, or 0 for any"
    if number == errno.EACCES:
        return f"this user may not listen on port {port}: choose one above 1023 with --port"
    if number == errno.EADDRNOTAVAIL:
        return f"--host: {host} is not an address of this machine"
    return f"cannot listen on port {port} of {host}: {error}"
