"""Whatever the framing, the encoding and the cuts: the client's bytes are the provider's, and the count is the same."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio
from recorded_exchanges import without_usage_only_chunks
from running import RunningGateway, running_gateway
from sse_bodies import COUNTED, FRAMINGS, INPUT_TOKENS, OUTPUT_TOKENS, REPORTED, USAGE_CHUNK, WIRES, write_all
from yarl import URL

from gateway.billing.accounts import NewConnection
from gateway.local.fake.replay import (
    ENCODE_HEADER,
    EXCHANGE_HEADER,
    SPLIT_HEADER,
    Exchange,
    Recordings,
    recorded_reply,
)
from gateway.proxy.metering import Watch
from gateway.testing import FakeProvider

pytestmark = pytest.mark.asyncio(loop_scope="module")

CREDIT_NANO = 1_000 * 10**9
CHARGE_NANO = (INPUT_TOKENS + OUTPUT_TOKENS) * 20_000


class Replayed:
    """A gateway whose provider serves the exchanges of `sse_bodies`, and a customer for each test."""

    def __init__(self, running: RunningGateway, recordings: Recordings) -> None:
        self.gateway = running
        self.recordings = recordings
        self.customer: NewConnection
        self.calls = 0

    def exchange(self, name: str) -> Exchange:
        return self.recordings.find(name, "", "", "", "")

    def sent(self, name: str, **steer: str) -> bytes:
        """What the provider sends."""
        return b"".join(recorded_reply(self.exchange(name), self._steering(name, **steer))[1])

    @staticmethod
    def _steering(name: str, *, split: str | None = None, encode: str | None = None) -> dict[str, str]:
        steer = {EXCHANGE_HEADER: name, SPLIT_HEADER: split, ENCODE_HEADER: encode}
        return {header: value for header, value in steer.items() if value is not None}

    async def call(self, name: str, request: dict[str, Any] | None = None, **steer: str) -> bytes:
        """The bytes that the client gets of an exchange."""
        wire, stream = WIRES[name.split()[0]], self.exchange(name).stream
        url = quote(wire.stream_url if stream else wire.url, safe="")
        body = request or (wire.stream_request if stream else wire.request)
        headers = {
            "Authorization": f"Bearer {self.gateway.token_for(self.customer)}",
            "Accept-Encoding": "gzip, deflate",
            **self._steering(name, **steer),
        }
        target = URL(f"{self.gateway.url}/v1/forward?u={url}", encoded=True)
        async with self.gateway.session.post(target, json=body, headers=headers) as answer:
            received = await answer.read()
            assert answer.status == 200, received
            assert answer.headers.get("Content-Encoding", "identity") == steer.get("encode", "identity")
            assert answer.headers["X-Request-Id"] == name
        self.calls += 1
        return received

    async def check_charges(self) -> None:
        """Every call so far cost the same, and nothing was guessed."""
        spent_nano = CREDIT_NANO - (await self.gateway.balance(self.customer)).cycle_nano
        rows = await self.gateway.rows("connection_id = $1", self.customer.connection_id)
        wrong = [row for row in rows if row["charge_nano"] != CHARGE_NANO or row["estimated"]]
        assert not wrong
        assert {row["ending"] for row in rows} == {"completed"}
        assert (len(rows), spent_nano) == (self.calls, self.calls * CHARGE_NANO)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(engines: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Replayed]:
    directory: Path = tmp_path_factory.mktemp("exchanges")
    write_all(directory)
    async with FakeProvider(replay=directory) as provider, running_gateway(*engines, provider) as running:
        yield Replayed(running, Recordings.load(directory))


@pytest_asyncio.fixture(loop_scope="module")
async def replayed(served: Replayed) -> Replayed:
    served.customer, served.calls = await served.gateway.customer(CREDIT_NANO), 0
    return served


ENCODINGS = ("identity", "gzip", "deflate")


@pytest.mark.parametrize("encode", ENCODINGS)
async def test_bodies_and_streams_pass_in_every_encoding(replayed: Replayed, encode: str) -> None:
    """Check 15."""
    for name in [*(f"{wire} {shape}" for wire in WIRES for shape in ("json", "lf", "crlf")), "gemini array"]:
        for split in (None, "random:7"):
            steer = {"encode": encode} | ({"split": split} if split else {})
            assert await replayed.call(name, **steer) == replayed.sent(name, encode=encode), (name, split)
    await replayed.check_charges()


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_every_framing_passes_when_each_byte_comes_alone(replayed: Replayed, framing: str) -> None:
    """Check 16."""
    for wire in WIRES:
        name = f"{wire} {framing}"
        for split in ("every", "3"):
            assert await replayed.call(name, split=split) == replayed.sent(name), (name, split)
    await replayed.check_charges()


async def test_a_split_at_every_byte_reaches_the_meter_as_single_bytes(
    replayed: Replayed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this the tests around it would prove less than they say."""
    sizes: list[int] = []
    prepare = Watch.__init__

    def watched(watch: Watch, *arguments: Any, **named: Any) -> None:
        prepare(watch, *arguments, **named)
        feed = watch.feed
        watch.feed = lambda data: sizes.append(len(data)) or feed(data)

    monkeypatch.setattr(Watch, "__init__", watched)
    assert len(await replayed.call("chat lf", split="every")) == len(sizes) == sum(sizes)


async def test_compressed_streams_pass_when_each_byte_comes_alone(replayed: Replayed) -> None:
    for name in ("chat cr", "anthropic crlf", "responses comments", "gemini array"):
        for encode in ENCODINGS:
            sent = replayed.sent(name, encode=encode)
            assert await replayed.call(name, encode=encode, split="every") == sent, (name, encode)
    await replayed.check_charges()


SPLITS = ("every", "2", "17", "random:1", "1000000")


@pytest.mark.parametrize("asking", ["nothing", "false", "null"])
@pytest.mark.parametrize("wire", ["chat", "completions"])
async def test_the_usage_chunk_is_hidden_from_a_client_that_did_not_ask(
    replayed: Replayed, wire: str, asking: str
) -> None:
    """Check 8: not asked, asked for without, and an explicit null."""
    request = {key: value for key, value in WIRES[wire].stream_request.items() if key != "stream_options"}
    request |= {"nothing": {}, "false": {"stream_options": {"include_usage": False}}, "null": {"stream_options": None}}[
        asking
    ]
    for framing in ("lf", "crlf"):
        sent = replayed.sent(f"{wire} {framing}")
        expected = without_usage_only_chunks(sent)
        assert len(expected) < len(sent) and b"[DONE]" in expected
        for split in SPLITS:
            assert await replayed.call(f"{wire} {framing}", request, split=split) == expected, split
    asked = replayed.gateway.provider.requests[-1]
    assert asked.json["stream_options"]["include_usage"] is True
    assert asked.header("accept-encoding") == "identity"
    await replayed.check_charges()


@pytest.mark.parametrize("framing", ["cr", "no space", "comments", "byte order mark", "data in several lines"])
async def test_the_usage_chunk_is_hidden_in_every_framing(replayed: Replayed, framing: str) -> None:
    """What is withheld is its event, with what stands before it in the same event (comments, ids); no other byte."""
    request = {key: value for key, value in WIRES["chat"].stream_request.items() if key != "stream_options"}
    style = FRAMINGS[framing]
    events = [event for event in WIRES["chat"].events if event[1] is not USAGE_CHUNK]
    for split in SPLITS:
        received = await replayed.call(f"chat {framing}", request, split=split)
        if not style.between:
            assert received == style.body(events), split
        assert b"prompt_tokens" not in received.replace(b'prompt_tokens\\"', b"")
        assert received.count(b"choices") == len(events) - 1 and b"[DONE]" in received
    await replayed.check_charges()


async def test_a_moderation_chunk_after_the_usage_is_not_hidden(replayed: Replayed) -> None:
    request = {key: value for key, value in WIRES["chat"].stream_request.items() if key != "stream_options"}
    sent = replayed.sent("chat moderated")
    for split in SPLITS:
        received = await replayed.call("chat moderated", request, split=split)
        assert received == without_usage_only_chunks(sent) != sent
        assert received.count(b'"moderation"') == 1
        events = [json.loads(line[6:]) for line in received.decode().split("\n") if line.startswith("data: {")]
        assert [bool(event["choices"]) for event in events] == [True, True, True, False]
    await replayed.check_charges()


@pytest.mark.parametrize("how", ["reports", "streams"])
@pytest.mark.parametrize("name", REPORTED)
async def test_zero_and_missing_are_told_apart(replayed: Replayed, name: str, how: str) -> None:
    """Check 23: an explicit zero is charged as zero; what was not reported, and only that, is counted here."""
    await replayed.call(f"chat {how} {name}")
    gateway, customer = replayed.gateway, replayed.customer
    (row,) = await gateway.rows("connection_id = $1", customer.connection_id)
    found = (row["usage"]["input_tokens"], row["usage"]["output_tokens"])
    *expected, estimated = REPORTED[name][1]
    assert row["estimated"] is estimated
    for tokens, reported in zip(found, expected, strict=True):
        assert tokens == reported if reported != COUNTED else 1 <= tokens <= 30, found
    assert CREDIT_NANO - (await gateway.balance(customer)).cycle_nano == row["charge_nano"] == sum(found) * 20_000
