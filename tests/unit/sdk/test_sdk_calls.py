"""The Python client: what it sends, what it makes of answers and errors, when it sends again."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

import httpx2
import pytest
from obol_sdk import (
    ApiError,
    AsyncObol,
    ConflictError,
    ConnectionFailedError,
    InvalidRequestError,
    NotFoundError,
    Obol,
    PaymentRequiredError,
    ServerError,
    UnexpectedAnswerError,
    retry,
)

KEY = "aks_test_1"
METER = {
    "meter_id": "prd_1",
    "meter_slug": "chat",
    "name": "Chat",
    "rate_type": "fixed",
    "tiers": [{"start": 0, "rate": "20", "type": "tokens_1m"}],
    "created_at": "2026-01-31T23:59:59.999Z",
    "of_a_later_version": True,
}


class Server:
    """Answers what it is told to, in turn, and remembers what it was asked."""

    def __init__(self, *answers: httpx2.Response | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, **options: Any) -> Obol:
        http = httpx2.Client(transport=httpx2.MockTransport(self))
        return Obol(KEY, base_url="http://obol.test", http_client=http, **options)


def ok(body: Any) -> httpx2.Response:
    return httpx2.Response(200, json=body)


def refusal(status: int, code: str = "x", headers: dict[str, str] | None = None, **more: Any) -> httpx2.Response:
    return httpx2.Response(status, json={"error": {"code": code, "message": "no", **more}}, headers=headers)


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr("obol_sdk.client.time.sleep", waited.append)
    return waited


def test_a_call_and_its_answer() -> None:
    server = Server(ok(METER))
    meter = server.client().meters.create(
        name="Chat",
        rate_type="fixed",
        tier_type="tokens_1m",
        tiers=[{"start": 0, "rate": Decimal("20.50")}],
    )
    assert (meter.tiers[0].rate, meter.created_at) == (
        Decimal(20),
        datetime(2026, 1, 31, 23, 59, 59, 999_000, tzinfo=UTC),
    )
    (asked,) = server.asked
    assert (asked.method, str(asked.url)) == ("POST", "http://obol.test/v1/meters")
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert json.loads(asked.content)["tiers"] == [{"start": "0", "rate": "20.50"}]
    assert "meter_slug" not in json.loads(asked.content)


async def test_the_same_call_awaited() -> None:
    server = Server(ok({"data": [METER], "has_more": True, "next_cursor": "c1"}), ok({"data": [METER]}))
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(server))
    async with AsyncObol(KEY, base_url="http://obol.test/v1/", http_client=http) as obol:
        page = await obol.meters.list(limit=1)
        assert [meter.meter_slug async for meter in page] == ["chat", "chat"]
    assert [str(asked.url.query, "ascii") for asked in server.asked] == ["limit=1", "limit=1&cursor=c1"]


def test_pages_are_fetched_as_they_are_needed() -> None:
    server = Server(ok({"data": [METER], "has_more": True, "next_cursor": "c1"}), ok({"data": [METER]}))
    page = server.client().meters.list()
    assert (len(page.data), page.has_more, len(server.asked)) == (1, True, 1)
    assert len(list(page)) == 2
    assert len(server.asked) == 2


def test_ids_are_one_part_of_the_path() -> None:
    server = Server(ok({"success": True}))
    server.client().customers.delete("user/7?x=../y")
    assert server.asked[0].url.raw_path == b"/v1/customers/user%2F7%3Fx%3D..%2Fy"
    with pytest.raises(ValueError, match="empty"):
        server.client().customers.delete("")


def test_none_clears_and_unset_stays() -> None:
    server = Server(ok({}))
    with pytest.raises(UnexpectedAnswerError, match=r"PATCH /v1/customers/con_1"):
        server.client().customers.update("con_1", email=None, phone="+1")
    assert json.loads(server.asked[0].content) == {"email": None, "phone": "+1"}


def test_money_is_never_a_float() -> None:
    with pytest.raises(TypeError, match="not float"):
        Server(ok({})).client().plans.create(name="Pro", period_amount=25.0)  # type: ignore[arg-type]


def test_times_and_metadata_in_queries() -> None:
    server = Server(ok({"items": [], "totals": None}))
    start = datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    with pytest.raises(UnexpectedAnswerError):
        server.client().usage.retrieve(start=start, metadata={"feature": "chat"})
    assert dict(server.asked[0].url.params) == {
        "start": "2026-01-01T00:00:00+02:00",
        "metadata_filters": '[["feature","chat"]]',
    }
    with pytest.raises(ValueError, match="time zone"):
        server.client().usage.retrieve(start=datetime(2026, 1, 1))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequestError),
        (402, PaymentRequiredError),
        (404, NotFoundError),
        (409, ConflictError),
        (500, ServerError),
        (302, ApiError),
    ],
)
def test_errors_by_their_status(status: int, kind: type[ApiError]) -> None:
    server = Server(refusal(status, "some_code", param="tiers", request_id="api_1"))
    with pytest.raises(kind) as caught:
        server.client(retries=0).meters.list()
    error = caught.value
    assert (error.status, error.code, error.field, error.request_id) == (status, "some_code", "tiers", "api_1")


def test_errors_of_others_are_told_too() -> None:
    for answer, code, message in [
        (httpx2.Response(502, text="<html>Bad gateway"), "http_502", "<html>Bad gateway"),
        (httpx2.Response(400, json={"error": "flat"}), "http_400", "flat"),
        (httpx2.Response(400, json={"error": {"type": "overloaded", "message": "busy"}}), "overloaded", "busy"),
        (httpx2.Response(404), "http_404", "status 404"),
    ]:
        with pytest.raises(ApiError) as caught:
            Server(answer).client(retries=0).meters.list()
        assert (caught.value.code, caught.value.message) == (code, message)


FAILED = httpx2.ConnectError("refused")
REPEATABLE: list[tuple[str, Callable[[Obol], Any]]] = [
    ("GET", lambda obol: obol.models.list()),
    ("a report", lambda obol: obol.requests.create(request_id="r", customer_id="c", meter_slug="m")),
    ("a customer by reference", lambda obol: obol.customers.create(reference_id="u")),
    ("gateway with a key", lambda obol: obol.gateway("https://a.test", idempotency_key="k")),
]
ONCE: list[tuple[str, Callable[[Obol], Any]]] = [
    ("POST", lambda obol: obol.secret_keys.create(name="n")),
    ("a customer without reference", lambda obol: obol.customers.create(name="n")),
    ("PATCH", lambda obol: obol.meters.update("m", name="n")),
    ("DELETE", lambda obol: obol.meters.delete("m")),
    ("gateway", lambda obol: obol.gateway("https://a.test", json={})),
]


@pytest.mark.parametrize("make", [one for _, one in REPEATABLE], ids=[name for name, _ in REPEATABLE])
@pytest.mark.parametrize("failure", [FAILED, refusal(503), refusal(429)], ids=["no answer", "503", "429"])
def test_what_can_be_repeated_is(make: Callable[[Obol], Any], failure: Any) -> None:
    server = Server(failure)
    with pytest.raises((ApiError, ConnectionFailedError)):
        make(server.client(retries=2))
    assert len(server.asked) == 3


@pytest.mark.parametrize("make", [one for _, one in ONCE], ids=[name for name, _ in ONCE])
def test_what_would_do_more_is_sent_once(make: Callable[[Obol], Any]) -> None:
    for failure in (FAILED, refusal(503)):
        server = Server(failure)
        with pytest.raises((ApiError, ConnectionFailedError)):
            make(server.client(retries=2))
        assert len(server.asked) == 1


def test_the_wait_follows_the_server_and_grows(no_wait: list[float]) -> None:
    server = Server(refusal(503, headers={"retry-after": "7"}), FAILED, FAILED, ok({"data": []}))
    server.client(retries=3).models.list()
    assert no_wait[0] == 7
    assert retry.FIRST_DELAY_S <= no_wait[1] <= 2 * retry.FIRST_DELAY_S < no_wait[2] * 2
    server = Server(refusal(429, headers={"retry-after": "3600"}))
    with pytest.raises(ApiError) as caught:
        server.client().models.list()
    assert (len(server.asked), caught.value.retry_after_s) == (1, 3600)


def test_a_final_refusal_is_not_repeated() -> None:
    for status in (400, 401, 402, 403, 404, 409, 500):
        server = Server(refusal(status))
        with pytest.raises(ApiError):
            server.client().models.list()
        assert len(server.asked) == 1


def token_of(request: httpx2.Request) -> dict[str, Any]:
    return json.loads(b64decode(request.headers["authorization"].removeprefix("Bearer ")))


def test_a_call_through_the_gateway() -> None:
    server = Server(httpx2.Response(200, json={"answer": 1}, headers={"x-lava-request-id": "req_1"}))
    answer = server.client().gateway(
        "https://api.openai.com/v1/chat/completions?x=1&y=2",
        json={"model": "gpt-4o-mini"},
        headers={"Authorization": "ignored", "X-Own": "1"},
        customer_id="con_1",
        meter_slug="chat",
        metadata={"feature": "Über"},
    )
    assert (answer.json(), answer.headers["x-lava-request-id"]) == ({"answer": 1}, "req_1")
    (asked,) = server.asked
    query = asked.url.query.decode()
    assert unquote(query) == "u=https://api.openai.com/v1/chat/completions?x=1&y=2"
    assert "&" not in query
    assert token_of(asked) == {"secret_key": KEY, "customer_id": "con_1", "meter_slug": "chat"}
    assert (asked.headers["x-own"], asked.headers["x-lava-metadata"]) == ("1", '{"feature":"\\u00dcber"}')
    server.client().gateway("https://api.anthropic.com/v1/messages", dialect="openai", content=b"{}")
    assert str(server.asked[1].url) == "http://obol.test/v1/rewrite/openai/https://api.anthropic.com/v1/messages"


def test_a_stream_is_read_by_the_caller() -> None:
    server = Server(httpx2.Response(200, text="data: a\n\ndata: b\n\n"))
    with server.client().gateway_stream("https://api.openai.com/v1/chat/completions", json={}) as stream:
        assert [line for line in stream.iter_lines() if line] == ["data: a", "data: b"]
    refused = Server(refusal(402, "insufficient_balance"))
    with (
        pytest.raises(PaymentRequiredError),
        refused.client().gateway_stream("https://api.openai.com/v1/chat/completions", json={}),
    ):
        pass


class Cut(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body that ends early."""

    def __iter__(self) -> Iterator[bytes]:
        yield b"data: a\n\n"
        raise httpx2.RemoteProtocolError("incomplete chunked read")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for each in self:
            yield each


def cut_off() -> httpx2.Response:
    return httpx2.Response(200, stream=Cut())


def broken_gzip() -> httpx2.Response:
    return httpx2.Response(200, headers={"content-encoding": "gzip"}, stream=httpx2.ByteStream(b"no gzip"))


@pytest.mark.parametrize("answer", [cut_off, broken_gzip])
async def test_an_answer_that_breaks_off_is_an_error_of_this_package(answer: Callable[[], httpx2.Response]) -> None:
    with pytest.raises(ConnectionFailedError):
        Server(answer()).client(retries=0).models.list()
    with (
        pytest.raises(ConnectionFailedError),
        Server(answer()).client().gateway_stream("https://a.test", json={}) as stream,
    ):
        list(stream.iter_lines())
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(Server(answer())))
    async with AsyncObol(KEY, base_url="http://obol.test", http_client=http) as obol:
        with pytest.raises(ConnectionFailedError):
            async with obol.gateway_stream("https://a.test", json={}) as awaited:
                assert [line async for line in awaited.aiter_lines()] == []


def test_other_requests_in_the_block_of_a_stream_fail_as_they_do() -> None:
    other = httpx2.Client(transport=httpx2.MockTransport(Server(FAILED)))
    with (
        pytest.raises(httpx2.ConnectError),
        Server(httpx2.Response(200, text="a")).client().gateway_stream("https://a.test", json={}),
    ):
        other.get("https://b.test")


def test_a_call_whose_first_try_is_still_under_way_is_waited_for(no_wait: list[float]) -> None:
    under_way = refusal(409, "request_in_progress", headers={"retry-after": "1"})
    server = Server(FAILED, under_way, refusal(409, "request_already_made"))
    with pytest.raises(ConflictError) as caught:
        server.client().gateway("https://a.test", json={}, idempotency_key="k")
    assert (caught.value.code, len(server.asked), no_wait[1]) == ("request_already_made", 3, 1)


def test_an_option_that_there_is_not_is_refused() -> None:
    server = Server(ok({}))
    with pytest.raises(TypeError, match="custmer_id"):
        server.client().gateway("https://a.test", json={}, custmer_id="c")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="custmer_id"):
        server.client().forward_token(custmer_id="c")  # type: ignore[call-arg]
    assert server.asked == []


def test_tokens() -> None:
    obol = Server(ok({})).client()

    def fields(token: str) -> dict[str, Any]:
        return json.loads(b64decode(token, validate=True))

    assert fields(obol.forward_token()) == {"secret_key": KEY}
    assert fields(obol.forward_token(connection_secret="cons_1", product_secret="ps_1")) == {
        "secret_key": KEY,
        "connection_secret": "cons_1",
        "product_secret": "ps_1",
    }
    assert fields(obol.forward_token(customer_id="c", meter_slug="m", disable_billing=True))["disable_billing"] is True
    for mistake in (
        {"customer_id": "c"},
        {"meter_slug": "m", "disable_billing": True},
        {"customer_id": "c", "connection_secret": "s", "meter_slug": "m"},
        {"meter_slug": "m", "product_secret": "p"},
    ):
        with pytest.raises(ValueError, match=r"."):
            obol.forward_token(**mistake)  # type: ignore[arg-type]


def test_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OBOL_SECRET_KEY", raising=False)
    monkeypatch.delenv("OBOL_BASE_URL", raising=False)
    with pytest.raises(ValueError, match="OBOL_SECRET_KEY"):
        Obol()
    with pytest.raises(ValueError, match="OBOL_BASE_URL"):
        Obol(KEY)
    with pytest.raises(ValueError, match="base_url"):
        Obol(KEY, base_url="obol.test")
    monkeypatch.setenv("OBOL_SECRET_KEY", KEY)
    monkeypatch.setenv("OBOL_BASE_URL", "http://obol.test/v1/")
    with Obol() as obol:
        assert obol.base_urls.openai == "http://obol.test/v1"
        assert obol.base_urls.anthropic == "http://obol.test"
        assert (
            obol.base_urls.forward_path("https://api.mistral.ai") == "http://obol.test/v1/forward/https/api.mistral.ai"
        )
