"""Answers depend on the request alone, and on how it steers them."""

from __future__ import annotations

import asyncio
import json

import pytest
from fake_calls import CHAT, chat, events, post, user

from gateway.local.fake.directive import Directive
from gateway.testing import FakeProvider, steering_header, steering_text


async def test_an_answer_is_a_function_of_its_request(http, provider):
    first = await post(http, provider, CHAT, chat("Hello"))
    again = await post(http, provider, CHAT, chat("Hello"), **{"x-unrelated": "1"})
    other = await post(http, provider, CHAT, chat("Bye"))
    assert first == again
    assert json.loads(first[1])["id"] != json.loads(other[1])["id"]


async def test_a_directive_in_the_text_steers_and_is_not_echoed(http, provider):
    fields = {"chunks": 5, "completion_tokens": 25, "prompt_tokens": 1_000, "cached_tokens": 900, "reasoning_tokens": 5}
    _, body = await post(http, provider, CHAT, chat(f"Hello {steering_text(**fields)}"))
    answer = json.loads(body)
    assert "fake " not in answer["choices"][0]["message"]["content"].partition("Every")[0]
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 900
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 5
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (1_000, 25)
    assert len(answer["choices"][0]["message"]["content"].split()) == 20
    _, streamed = await post(http, provider, CHAT, chat(f"Hello {steering_text(**fields)}", stream=True))
    assert len(events(streamed)) == 1 + 5 + 1


async def test_the_header_wins_over_the_text_and_the_text_over_the_defaults(http):
    async with FakeProvider(Directive(completion_tokens=3, prompt_tokens=7)) as provider:
        _, defaults = await post(http, provider, CHAT, chat())
        request = chat("[[fake completion_tokens=5]]")
        _, text = await post(http, provider, CHAT, request)
        _, header = await post(http, provider, CHAT, request, **steering_header(completion_tokens=9))
    usages = [json.loads(body)["usage"] for body in (defaults, text, header)]
    assert [usage["completion_tokens"] for usage in usages] == [3, 5, 9]
    assert [usage["prompt_tokens"] for usage in usages] == [7, 7, 7]


async def test_only_the_last_user_message_steers(http, provider):
    messages = [*user("[[fake completion_tokens=5]]"), {"role": "assistant", "content": "ok"}, *user("Hello")]
    _, body = await post(http, provider, CHAT, {"model": "m", "messages": messages})
    assert json.loads(body)["usage"]["completion_tokens"] > 5
    assert json.loads(body)["usage"]["prompt_tokens"] == 2 + 3 * 4


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_the_maximum_is_kept(http, provider, field):
    _, body = await post(http, provider, CHAT, chat("[[fake completion_tokens=50 chunks=40]]", **{field: 10}))
    answer = json.loads(body)
    assert answer["usage"]["completion_tokens"] == 10
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_a_billion_tokens_are_claimed_but_not_written(http, provider):
    _, body = await post(http, provider, CHAT, chat("[[fake completion_tokens=1000000000]]"))
    answer = json.loads(body)
    assert answer["usage"]["completion_tokens"] == 1_000_000_000
    assert len(answer["choices"][0]["message"]["content"].split()) == 100_000


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("chunks=0", "chunks"),
        ("delay_ms=x", "delay_ms"),
        ("colour=red", "colour"),
        ("chunks", "chunks"),
        ("fault=none_such", "none_such"),
        ("fault=status:200", "status"),
        ("fault=stall:5", "stall"),
        ("prompt_tokens=5 cached_tokens=6", "cached_tokens"),
    ],
)
async def test_a_bad_directive_is_refused_by_name(http, provider, text, named):
    status, body = await post(http, provider, CHAT, chat(f"[[fake {text}]]"))
    assert status == 400
    assert named in json.loads(body)["error"]["message"]


async def test_delays_are_kept(http, provider):
    loop = asyncio.get_running_loop()
    started = loop.time()
    headers = steering_header(chunks=5, chunk_delay_ms=20, delay_ms=60)
    async with http.post(provider.url + CHAT, json=chat(stream=True), headers=headers) as response:
        first_byte_s = loop.time() - started
        await response.read()
    assert first_byte_s >= 0.06
    assert loop.time() - started >= 0.06 + 5 * 0.02
