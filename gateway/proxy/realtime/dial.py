"""The WebSocket to the provider.

aiohttp's client does the handshake and the frames; where it may connect is decided as for all other calls: names are
resolved and checked by `resolver.py`, the connection goes to the very addresses that were checked, TLS proves the name,
and no redirect is followed.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from typing import NamedTuple

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse, ClientWebSocketResponse
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict
from yarl import URL

from gateway.errors import ObolError
from gateway.proxy.http_client import HeaderPairs
from gateway.proxy.resolver import NotSent, Policy, Resolver
from gateway.proxy.upstream import Origin

SWITCHED = 101
REFUSAL_MAX_BYTES = 64 * 1024
"""Of a provider's answer that is no WebSocket."""
CLOSE_TIMEOUT_S = 2.0
OUR_HEADERS = ("Accept", "Accept-Encoding", "User-Agent")
"""Which aiohttp would add: the client's own are sent, or none."""


class Refused(Exception):
    """The provider answered the handshake with an answer of its own."""

    def __init__(self, status: int, content_type: str, body: bytes) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.content_type = content_type
        self.body = body


class Connected(NamedTuple):
    """`close` both, the session last."""

    socket: ClientWebSocketResponse[bool]
    session: aiohttp.ClientSession


class Pinned(AbstractResolver):
    """`resolver.py` as aiohttp asks for it, for hosts that one policy holds for."""

    def __init__(self, resolver: Resolver, policy: Policy) -> None:
        self._resolver = resolver
        self._policy = policy

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        infos = await self._resolver.addresses(host, port, self._policy)
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=found,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found, _, protocol, _, address in infos
        ]

    async def close(self) -> None:
        """The resolver outlives this session."""


class Dialer:
    """Connects to providers, within a time for all of it."""

    def __init__(self, resolver: Resolver, tls: ssl.SSLContext, *, connect_timeout_s: float) -> None:
        self._resolver = resolver
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s

    async def connect(
        self,
        origin: Origin,
        path: str,
        headers: HeaderPairs,
        protocols: Sequence[str],
        *,
        withheld: bytes,
        max_message_bytes: int,
    ) -> Connected:
        """`withheld`: the caller's credential, which must stand nowhere in the head. Raise ObolError (NotSent where
        nothing was sent), or Refused."""
        _check_head(path, headers, protocols, withheld)
        connector = aiohttp.TCPConnector(
            resolver=Pinned(self._resolver, origin.policy), use_dns_cache=False, ssl=self._tls, force_close=True
        )
        session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=OUR_HEADERS,
            middlewares=(_no_other_answer,),
            read_bufsize=64 * 1024,
        )
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                made = await session.ws_connect(
                    URL(f"{origin.scheme}://{origin.host}:{origin.port}{path}", encoded=True),
                    headers=_multi(headers, origin),
                    protocols=protocols,
                    max_msg_size=max_message_bytes,
                    autoclose=False,
                    autoping=False,
                    decode_text=False,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT_S),
                )
        except BaseException as error:
            await session.close()
            raise _told(error, origin) from None
        return Connected(made, session)


async def _no_other_answer(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    """Only a WebSocket will do: a redirect is not followed, and an error's body is read before it is gone."""
    response = await handler(request)
    if response.status == SWITCHED:
        return response
    body = b""
    while len(body) < REFUSAL_MAX_BYTES and (piece := await response.content.read(REFUSAL_MAX_BYTES - len(body))):
        body += piece
    response.close()
    raise Refused(response.status, response.headers.get("content-type", "application/json"), body)


def _check_head(path: str, headers: HeaderPairs, protocols: Sequence[str], withheld: bytes) -> None:
    head = b"\n".join([path.encode("latin-1"), *(b"%b: %b" % pair for pair in headers)])
    if withheld and (withheld in head or withheld in "\n".join(protocols).encode("latin-1")):
        raise NotSent(
            "invalid_request",
            "the credential also stands in a header or parameter that would go to the provider; send it once",
            param="authorization",
        )


def _multi(headers: HeaderPairs, origin: Origin) -> CIMultiDict[str]:
    found = CIMultiDict((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)
    found["Host"] = origin.host_header
    return found


def _told(error: BaseException, origin: Origin) -> BaseException:
    """What a failed handshake is to the caller."""
    if isinstance(error, aiohttp.WSServerHandshakeError):
        return ObolError("upstream_failed", f"{origin.host} answered with something that is no WebSocket")
    if isinstance(error, TimeoutError):
        why = f"{origin.host} did not answer in time"
        return ObolError("upstream_timeout", why, limit="upstream_connect_timeout_ms")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return ObolError("upstream_failed", f"{origin.host} did not prove who it is")
    if isinstance(error, aiohttp.ClientError | OSError):
        return ObolError("upstream_failed", f"{origin.host} could not be reached ({type(error).__name__})")
    return error
