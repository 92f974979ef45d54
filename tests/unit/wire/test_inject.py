"""Asking a stream for its usage changes the body's own bytes as little as can be."""

from __future__ import annotations

import json
import time

import pytest

from gateway.wire.contract import RequestFacts
from gateway.wire.formats import FORMATS
from gateway.wire.inject import with_usage

ASKED = b'"stream_options":{"include_usage":true}'


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b'{"model":"m","stream":true}', b"{" + ASKED + b',"model":"m","stream":true}'),
        (b' \r\n {  "stream": true }', b" \r\n {" + ASKED + b',  "stream": true }'),
        (b"\xef\xbb\xbf{}", b"\xef\xbb\xbf{" + ASKED + b"}"),
        (
            b'{"messages":[{"content":"\\"stream_options\\": {"}],"a":{"stream_options":{}}}',
            b"{" + ASKED + b',"messages":[{"content":"\\"stream_options\\": {"}],"a":{"stream_options":{}}}',
        ),
        (b'{"x":"stream_options","y":1.50}', b"{" + ASKED + b',"x":"stream_options","y":1.50}'),
        (b'{"stream_options": null ,"y":1.50}', b'{"stream_options":{"include_usage":true},"y":1.50}'),
        (
            b'{"y":1e2,"stream_options":{"include_obfuscation":false}}',
            b'{"y":1e2,"stream_options":{"include_obfuscation":false,"include_usage":true}}',
        ),
        (b'{"stream_options":{"include_usage":false}, "z" : 1}', b"{" + ASKED + b', "z" : 1}'),
        (b'{"stream_options":{},"b":[{}],"stream_options":{"include_usage":0}}', None),
        (b'{"stream\\u005foptions":{}, "q":2}', b'{"stream\\u005foptions":{"include_usage":true}, "q":2}'),
        (b"no object", b"no object"),
    ],
)
def test_with_usage(body: bytes, sent: bytes | None) -> None:
    changed = with_usage(body)
    if sent is not None:
        assert changed == sent
    if b"{" in body:
        before, after = (json.loads(one.removeprefix(b"\xef\xbb\xbf")) for one in (body, changed))
        assert after["stream_options"]["include_usage"] is True
        assert {**after, "stream_options": 0} == {**before, "stream_options": 0}


@pytest.mark.parametrize(
    ("facts", "inject", "changes"),
    [
        (RequestFacts(stream=True), True, True),
        (RequestFacts(stream=True), False, False),
        (RequestFacts(stream=False), True, False),
        (RequestFacts(stream=True, include_usage=True), True, False),
    ],
)
def test_only_streams_of_clients_that_did_not_ask_are_changed(facts: RequestFacts, inject: bool, changes: bool) -> None:
    body = b'{"model":"m"}'
    for name in ("openai_chat", "openai_completions"):
        assert (FORMATS[name].upstream_body(body, facts, inject_usage=inject) is not body) is changes
    for name in FORMATS.keys() - {"openai_chat", "openai_completions"}:
        assert FORMATS[name].upstream_body(body, facts, inject_usage=inject) is body


def test_a_large_body_is_not_read_token_by_token() -> None:
    """It is read on the event loop."""
    items = b"[]," * 200_000 + b"[]"
    body = b'{"stream_options" : {"chunk":1}, "messages":[' + items + b"]}"
    began_s = time.process_time()
    changed = with_usage(body)
    assert time.process_time() - began_s < 0.1
    assert changed == b'{"stream_options":{"chunk":1,"include_usage":true},"messages":[' + items + b"]}"
