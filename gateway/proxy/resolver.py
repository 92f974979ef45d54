"""Names of upstream hosts become addresses here and nowhere else: resolved, every address checked, kept for a moment.

The connection is then made to these addresses themselves (`upstream.py`). There is no second resolution between the
check and the connect, so a name that changes its answer in between gains nothing.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Any, Literal

import msgspec

from gateway.errors import ObolError
from gateway.wire.addresses import is_allowed

AddressInfo = tuple[int, int, int, str, Any]
"""As `socket.getaddrinfo` gives it: family, type, protocol, canonical name, socket address."""
Lookup = Callable[[str, int], list[AddressInfo]]
"""Blocking: host and port to addresses. Raise OSError. It runs in a thread."""
Policy = Literal["provider", "own", "stand_in"]
"""Whose choice a host is: the provider table's, a merchant's own, or the operator's (OBOL_UPSTREAM_MAP, unchecked)."""

CACHE_ENTRIES_MAX = 1_024
FAILURE_CACHE_S = 1.0
LOOKUPS_MAX = 8
"""Threads that resolve at once for hosts of the table, and as many for all others: names that a merchant chose and
whose servers do not answer never keep a provider's from being resolved."""
ADDRESSES_OF_FAMILY_MAX = 3
"""Of one name, of IPv4 and of IPv6 each, that are tried."""


class NotSent(ObolError):
    """A call that is not made: no connection was opened for it, nothing was sent."""


class _Answer(msgspec.Struct, frozen=True):
    infos: list[AddressInfo]
    until_s: float
    failure: str = ""


def get_addresses(host: str, port: int) -> list[AddressInfo]:
    """The system's resolver."""
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


class Resolver:
    """Addresses by host and port, kept for `cache_s`. `private_hosts` may have private addresses."""

    def __init__(
        self,
        *,
        cache_s: float,
        private_hosts: AbstractSet[str] = frozenset(),
        lookup: Lookup = get_addresses,
        lookups_max: int = LOOKUPS_MAX,
    ) -> None:
        self._cache_s = cache_s
        self._private_hosts = private_hosts
        self._lookup = lookup
        self._lookups_max = lookups_max
        self._answers: dict[tuple[str, int], _Answer] = {}
        self._waiting: dict[tuple[str, int], asyncio.Future[_Answer]] = {}
        self._threads: Counter[bool] = Counter()

    async def addresses(self, host: str, port: int, policy: Policy) -> list[AddressInfo]:
        """Where `host` may be reached, at least one. The caller sets the time limit; a cancelled wait is harmless.

        Raise ObolError: `upstream_failed` where there is no such host, `forward_target_invalid` where a merchant's
        own host has an address that is not public, `too_many_requests` where too many names are being resolved.
        """
        key = host, port
        answer = self._answers.get(key)
        if answer is None or answer.until_s <= asyncio.get_running_loop().time():
            waiting = self._waiting.get(key) or self._start(key, table=policy != "own")
            answer = await asyncio.shield(waiting)
        if not answer.infos:
            raise ObolError("upstream_failed", f"{host} could not be resolved ({answer.failure})")
        if policy != "stand_in":
            self._check(host, answer.infos, policy)
        return _few(answer.infos)

    def _check(self, host: str, infos: list[AddressInfo], policy: Policy) -> None:
        """One bad address spoils the answer. Which it is stays unsaid: it would tell a stranger about our network."""
        private = host in self._private_hosts
        if all(is_allowed(info[4][0], private=private) for info in infos):
            return
        why = f"{host} has an address that is not public"
        if policy == "provider":
            raise ObolError("upstream_failed", f"{why}; the operator may list it in private_upstreams")
        raise NotSent("forward_target_invalid", f"The target's host {why}", param="u")

    def _start(self, key: tuple[str, int], *, table: bool) -> asyncio.Future[_Answer]:
        """Look up in a thread of its own: one that hangs holds up neither the loop nor the end of the process."""
        if self._threads[table] >= self._lookups_max:
            raise NotSent("too_many_requests", "too many hosts are being resolved; try again", retry_after_s=1)
        loop = asyncio.get_running_loop()
        self._waiting[key] = waiting = loop.create_future()
        self._threads[table] += 1
        threading.Thread(target=self._look_up, args=(loop, key, table), name="resolver", daemon=True).start()
        return waiting

    def _look_up(self, loop: asyncio.AbstractEventLoop, key: tuple[str, int], table: bool) -> None:
        infos, failure = [], "it has no address"
        try:
            infos = self._lookup(*key)
        except (OSError, UnicodeError) as error:
            failure = (isinstance(error, OSError) and error.strerror) or type(error).__name__
        finally:
            with suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(self._keep, key, table, infos, failure)

    def _keep(self, key: tuple[str, int], table: bool, infos: list[AddressInfo], failure: str) -> None:
        self._threads[table] -= 1
        kept_s = self._cache_s if infos else FAILURE_CACHE_S
        answer = _Answer(infos, asyncio.get_running_loop().time() + kept_s, failure)
        self._answers.pop(key, None)
        while len(self._answers) >= CACHE_ENTRIES_MAX:
            del self._answers[next(iter(self._answers))]
        self._answers[key] = answer
        self._waiting.pop(key).set_result(answer)


def _few(infos: list[AddressInfo]) -> list[AddressInfo]:
    """In the resolver's order, some of each family: whichever of the two does not work here, the other is tried."""
    taken: Counter[int] = Counter()
    kept = []
    for info in infos:
        taken[info[0]] += 1
        if taken[info[0]] <= ADDRESSES_OF_FAMILY_MAX:
            kept.append(info)
    return kept
