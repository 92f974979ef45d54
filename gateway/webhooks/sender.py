"""One attempt to deliver a body.

The client is the gateway's own: names resolved and every address checked, TLS verified, no redirect followed, nothing
tried twice by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from gateway import __version__
from gateway.errors import ObolError
from gateway.proxy.http_client import HeaderPairs, Timeouts
from gateway.proxy.resolver import LOOKUPS_MAX, NotSent, Resolver
from gateway.proxy.upstream import Origin, Request, Response, Upstream, tls_context
from gateway.settings import Settings
from gateway.wire import webhook_target

ANSWER_MAX_BYTES: Final = 64 * 1024
LOOKUP_ROUNDS: Final = 3
_REST_TIMEOUT_S = 2.0
"""To read on what is left of an answer, so that its connection can serve again."""


class Outcome(msgspec.Struct, frozen=True):
    """`status_code`: of the answer, None without one. `error`: None where it was delivered."""

    status_code: int | None
    error: str | None
    ours: bool = False
    """Nothing was sent, for a reason on our side."""


class Sender:
    """Posts to endpoints."""

    def __init__(self, upstream: Upstream, settings: Settings) -> None:
        self._upstream = upstream
        self._private_hosts = frozenset(settings.webhook_private_hosts)
        self._timeout_s = settings.webhook_timeout_ms / 1000

    async def post(self, url: str, headers: HeaderPairs, body: bytes) -> Outcome:
        """Never raises: whatever goes wrong is the outcome."""
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._sent(url, headers, body)
        except TimeoutError:
            return Outcome(None, f"no answer within {self._timeout_s:g} s")
        except NotSent as error:
            return Outcome(None, error.message, ours=error.code == "too_many_requests")
        except ObolError as error:
            return Outcome(None, error.message.replace("the provider", "the endpoint"))
        try:
            await self._read_on(response)
        finally:
            response.close()
        return Outcome(response.status, _fault(response.status))

    async def _sent(self, url: str, headers: HeaderPairs, body: bytes) -> Response:
        to = webhook_target.parse(url, self._private_hosts)
        origin = Origin(to.scheme, to.host, to.port, to.host_header)
        agent = (b"User-Agent", f"Obol-Webhooks/{__version__}".encode())
        pairs = [(b"Content-Type", b"application/json"), (b"Accept", b"*/*"), agent, *headers]
        request = Request(method="POST", path=to.path, headers=pairs, body=body)
        return await self._upstream.send(origin, request, Timeouts(self._timeout_s, self._timeout_s, self._timeout_s))

    async def _read_on(self, response: Response) -> None:
        """What the answer says is of no interest, and what it does after its head changes nothing."""
        size = 0
        try:
            async with asyncio.timeout(_REST_TIMEOUT_S):
                while size <= ANSWER_MAX_BYTES and (piece := await response.read()):
                    size += len(piece)
        except (TimeoutError, ObolError):
            return


def _fault(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    redirect = "; redirects are not followed" if 300 <= status < 400 else ""
    return f"the endpoint answered {status}{redirect}"


@asynccontextmanager
async def sending(settings: Settings) -> AsyncIterator[Sender]:
    """A sender with connections of its own, closed at the end."""
    upstream = Upstream(
        connections_max=settings.webhook_calls_max,
        connect_timeout_s=settings.webhook_timeout_ms / 1000,
        idle_s=settings.upstream_idle_connection_s,
        resolver=resolver(settings, lookups_max=LOOKUP_ROUNDS * settings.webhook_calls_max),
        tls=tls_context(settings.upstream_ca_file),
    )
    async with asyncio.TaskGroup() as group:
        keeper = group.create_task(upstream.run(), name="webhook connections")
        try:
            yield Sender(upstream, settings)
        finally:
            keeper.cancel()
            await upstream.close()


def resolver(settings: Settings, *, lookups_max: int = LOOKUPS_MAX) -> Resolver:
    """Names of endpoints become addresses here: public ones, but for the hosts that the operator vouches for.

    All hosts are merchants' choice. Of the lookups for attempts, what limits them is that attempts are limited, which
    are shared out fairly; there is room for those of three rounds, as a lookup may hang for longer than its attempt.
    """
    return Resolver(
        cache_s=settings.upstream_dns_cache_s,
        private_hosts=frozenset(settings.webhook_private_hosts),
        lookups_max=lookups_max,
    )
