"""The two clients: `Obol` and `AsyncObol`. What they send is in `resources`, when they send it again in `retry`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Generic, NoReturn, Self, TypeVar, Unpack

import httpx2
import msgspec

from obol_sdk import resources, retry, tokens
from obol_sdk.base_urls import BaseUrls, root_of
from obol_sdk.call import Async, Call, Sync, World
from obol_sdk.errors import ConnectionFailedError, ObolError, UnexpectedAnswerError, api_error
from obol_sdk.gateway_call import GatewayOptions, gateway_call
from obol_sdk.pages import AsyncPage, Listed, Page

T = TypeVar("T")
TIMEOUT_S = 30.0
RETRIES = 2


class _Client(Generic[World]):
    """What both clients have: configuration, resources, tokens."""

    def __init__(self, secret_key: str | None, base_url: str | None, timeout_s: float, retries: int) -> None:
        self._secret_key = secret_key or os.environ.get("OBOL_SECRET_KEY", "")
        if not self._secret_key:
            raise ValueError("secret_key: give it, or set OBOL_SECRET_KEY")
        address = base_url or os.environ.get("OBOL_BASE_URL", "")
        if not address:
            raise ValueError("base_url: give it, or set OBOL_BASE_URL (http://127.0.0.1:8080)")
        self.base_urls = BaseUrls(root_of(address))
        self._timeout_s, self._retries = timeout_s, retries
        self.checkout_sessions: resources.CheckoutSessions[World] = resources.CheckoutSessions(self)
        self.customers: resources.Customers[World] = resources.Customers(self)
        self.connections: resources.Customers[World] = self.customers
        """The customers by their other name."""
        self.requests: resources.Requests[World] = resources.Requests(self)
        self.usage: resources.UsageReports[World] = resources.UsageReports(self)
        self.meters: resources.Meters[World] = resources.Meters(self)
        self.plans: resources.Plans[World] = resources.Plans(self)
        self.subscriptions: resources.Subscriptions[World] = resources.Subscriptions(self)
        self.credit_bundles: resources.CreditBundles[World] = resources.CreditBundles(self)
        self.webhooks: resources.Webhooks[World] = resources.Webhooks(self)
        self.secret_keys: resources.SecretKeys[World] = resources.SecretKeys(self)
        self.spend_keys: resources.SpendKeys[World] = resources.SpendKeys(self)
        self.provider_keys: resources.ProviderKeys[World] = resources.ProviderKeys(self)
        self.models: resources.Catalogue[World] = resources.Catalogue(self)
        self.test_clock: resources.Clock[World] = resources.Clock(self)

    def send(self, call: Call[T]) -> Any:
        raise NotImplementedError

    def send_paged(self, call: Call[Listed[T]]) -> Any:
        raise NotImplementedError

    def forward_token(self, **fields: Unpack[tokens.TokenFields]) -> str:
        """The key to give to a vendor's package for one customer's calls by one meter: see `tokens.forward_token`.

        It holds the secret key: keep it on your servers.
        """
        return tokens.forward_token(self._secret_key, **fields)

    def _request(self, http: httpx2.Client | httpx2.AsyncClient, call: Call[Any]) -> httpx2.Request:
        return http.build_request(
            call.method,
            f"{self.base_urls.root}/v1/{call.path}",
            params=call.query,
            headers={"Authorization": f"Bearer {self._secret_key}", "Content-Type": "application/json"},
            content=None if call.body is None else msgspec.json.encode(call.body),
            timeout=self._timeout_s,
        )

    def _gateway_request(
        self, http: httpx2.Client | httpx2.AsyncClient, url: str, options: GatewayOptions
    ) -> tuple[httpx2.Request, bool]:
        """And whether it may be sent again."""
        call = gateway_call(self.base_urls, self._secret_key, url, options)
        request = http.build_request(
            call.method, call.url, headers=call.headers, content=call.content, timeout=call.timeout_s
        )
        return request, call.repeatable

    def _wait_s(self, error: ObolError, attempt: int, repeatable: bool) -> float:
        """Until the next attempt; raises the error if there is none."""
        wait_s = retry.delay_s(error, attempt, repeatable=repeatable) if attempt <= self._retries else None
        if wait_s is None:
            raise error
        return wait_s


class Obol(_Client[Sync]):
    """`secret_key` or OBOL_SECRET_KEY, `base_url` or OBOL_BASE_URL. `timeout_s` is for each step of a call of
    the API, `retries` for calls that can be repeated without doing more. Close it, or use it in a
    `with` block; threads may share it. Proxies of the environment are used by an `http_client` of your own only.
    """

    def __init__(
        self,
        secret_key: str | None = None,
        *,
        base_url: str | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        http_client: httpx2.Client | None = None,
    ) -> None:
        super().__init__(secret_key, base_url, timeout_s, retries)
        self._http = http_client or httpx2.Client(trust_env=False)

    def gateway(self, url: str, **options: Unpack[GatewayOptions]) -> httpx2.Response:
        """Call a provider's URL through the gateway; the answer is the provider's, read to its end. Raise ApiError."""
        request, repeatable = self._gateway_request(self._http, url, options)
        return self._send(request, repeatable=repeatable)

    @contextmanager
    def gateway_stream(self, url: str, **options: Unpack[GatewayOptions]) -> Iterator[httpx2.Response]:
        """The same with a body that is still to be read: `iter_lines()`, `iter_bytes()`."""
        request, repeatable = self._gateway_request(self._http, url, options)
        response = self._send(request, repeatable=repeatable, stream=True)
        try:
            yield response
        except httpx2.RequestError as error:
            _raise_cut_off(error, response)
        finally:
            response.close()

    def send(self, call: Call[T]) -> T:
        response = self._send(self._request(self._http, call), repeatable=call.repeatable)
        return _decoded(response.content, call)

    def send_paged(self, call: Call[Listed[T]]) -> Page[T]:
        return Page(self.send(call), lambda cursor: self.send_paged(call.at(cursor)))

    def _send(self, request: httpx2.Request, *, repeatable: bool, stream: bool = False) -> httpx2.Response:
        attempt = 1
        while True:
            try:
                return self._attempt(request, stream=stream)
            except ObolError as error:
                time.sleep(self._wait_s(error, attempt, repeatable))
            attempt += 1

    def _attempt(self, request: httpx2.Request, *, stream: bool) -> httpx2.Response:
        try:
            response = self._http.send(request, stream=stream)
            if response.status_code < 300:
                return response
            try:
                response.read()
            finally:
                response.close()
        except httpx2.RequestError as error:
            _raise_failed(error)
        raise api_error(response.status_code, response.headers, response.content)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncObol(_Client[Async]):
    """`Obol` for asyncio: the same methods, awaited. Use it in one event loop."""

    def __init__(
        self,
        secret_key: str | None = None,
        *,
        base_url: str | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        http_client: httpx2.AsyncClient | None = None,
    ) -> None:
        super().__init__(secret_key, base_url, timeout_s, retries)
        self._http = http_client or httpx2.AsyncClient(trust_env=False)

    async def gateway(self, url: str, **options: Unpack[GatewayOptions]) -> httpx2.Response:
        """Call a provider's URL through the gateway; the answer is the provider's, read to its end. Raise ApiError."""
        request, repeatable = self._gateway_request(self._http, url, options)
        return await self._send(request, repeatable=repeatable)

    @asynccontextmanager
    async def gateway_stream(self, url: str, **options: Unpack[GatewayOptions]) -> AsyncIterator[httpx2.Response]:
        """The same with a body that is still to be read: `aiter_lines()`, `aiter_bytes()`."""
        request, repeatable = self._gateway_request(self._http, url, options)
        response = await self._send(request, repeatable=repeatable, stream=True)
        try:
            yield response
        except httpx2.RequestError as error:
            _raise_cut_off(error, response)
        finally:
            await response.aclose()

    async def send(self, call: Call[T]) -> T:
        response = await self._send(self._request(self._http, call), repeatable=call.repeatable)
        return _decoded(response.content, call)

    async def send_paged(self, call: Call[Listed[T]]) -> AsyncPage[T]:
        return AsyncPage(await self.send(call), lambda cursor: self.send_paged(call.at(cursor)))

    async def _send(self, request: httpx2.Request, *, repeatable: bool, stream: bool = False) -> httpx2.Response:
        attempt = 1
        while True:
            try:
                return await self._attempt(request, stream=stream)
            except ObolError as error:
                await asyncio.sleep(self._wait_s(error, attempt, repeatable))
            attempt += 1

    async def _attempt(self, request: httpx2.Request, *, stream: bool) -> httpx2.Response:
        try:
            response = await self._http.send(request, stream=stream)
            if response.status_code < 300:
                return response
            try:
                await response.aread()
            finally:
                await response.aclose()
        except httpx2.RequestError as error:
            _raise_failed(error)
        raise api_error(response.status_code, response.headers, response.content)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _decoded(content: bytes, call: Call[T]) -> T:
    try:
        return msgspec.json.decode(content, type=call.answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnexpectedAnswerError(f"{call.method} /v1/{call.path} answered what is not known here: {error}") from None


def _raise_cut_off(error: httpx2.RequestError, response: httpx2.Response) -> NoReturn:
    """What went wrong while the caller read `response`. Where another request of the caller failed, it is not ours."""
    if error.request is not response.request:
        raise error
    _raise_failed(error)


def _raise_failed(error: httpx2.RequestError) -> NoReturn:
    timed_out = isinstance(error, httpx2.TimeoutException)
    raise ConnectionFailedError(f"{type(error).__name__}: {error}", timed_out=timed_out) from error
