"""What the fuzzers of tests/fuzz found, each as the shortest input that shows it."""

from __future__ import annotations

import base64
import time
import zlib

import brotli
import pytest

from gateway import providers
from gateway.errors import ObolError
from gateway.proxy.decoding import decoder_for
from gateway.wire import credential
from gateway.wire.contract import Meter, RequestFacts
from gateway.wire.formats import FORMATS
from gateway.wire.requests import decode_body
from gateway.wire.target import resolve

TABLE = providers.load()
DELTA = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'


@pytest.mark.parametrize("path", ["/v" + "1" * 8_000, "/v1/v" + "1" * 8_000, "/openai/v1/v1" + "1" * 8_000])
def test_a_long_row_of_digits_in_a_path_is_read_once(path: str) -> None:
    """The repair of doubled versions took 2 s for it, on the event loop and before the credential was looked at."""
    began = time.thread_time()
    assert resolve(f"/v1/forward?u=https://api.openai.com{path}", TABLE).bare_path.endswith("1111")
    assert time.thread_time() - began < 0.05


def test_a_dotted_token_with_other_bytes_than_ascii_is_refused() -> None:
    """They were replaced, so that different tokens were one."""
    with pytest.raises(ObolError) as refused:
        credential.decode(base64.b64encode(b"aks_test_\x91.cons_test_2.ps_test_3").decode())
    assert refused.value.code == "unauthorized"


def test_the_reason_of_a_bad_body_is_short_however_deep_the_fault() -> None:
    """msgspec tells the path to it, five characters a level."""
    with pytest.raises(ObolError) as refused:
        decode_body(b'{"a":' * 900 + b"1e999" + b"}" * 900, dict)
    assert refused.value.code == "invalid_request"
    assert len(refused.value.message) < 1_000


def read(name: str, pieces: list[bytes]) -> Meter:
    meter = FORMATS[name].meter(
        RequestFacts(model="m", stream=True),
        provider="openai",
        content_type="text/event-stream",
        hide_usage=False,
        limit_bytes=1_000_000,
    )
    for piece in pieces:
        meter.feed(piece)
    meter.finish()
    return meter


@pytest.mark.parametrize("name", ["openai_chat", "openai_completions", "audio_transcriptions"])
def test_the_end_marker_counts_wherever_it_stands_in_a_chunk(name: str) -> None:
    """It was looked for in the last 64 bytes of a chunk only: an answer without usage was then cut for the client."""
    stream = DELTA + b"data: [DONE]\n\n" + b": " + b"x" * 100 + b"\n\n"
    assert read(name, [stream]).reading().finished
    assert read(name, [stream[:90], stream[90:]]).reading().finished


def test_an_error_event_is_noticed_behind_every_line_end() -> None:
    stream = (DELTA + b'event: error\ndata: {"message":"overloaded"}\n\n').replace(b"\n", b"\r")
    whole, cut = read("openai_chat", [stream]), read("openai_chat", [stream[:49], stream[49:]])
    assert whole.reading().failed == cut.reading().failed == "overloaded"


def test_what_follows_a_deflated_body_is_dropped() -> None:
    """zlib kept it and gave it back for ever: the decoder never ended and its memory grew."""
    packer = zlib.compressobj()
    body = packer.compress(bytes(70_000)) + packer.flush()
    decoder = decoder_for("deflate", 1_000_000)
    assert decoder is not None
    assert decoder.feed(body + b"more" * 1_000) == bytes(70_000)
    assert [decoder.feed(b"more" * 1_000) for _ in range(3)] == [b""] * 3
    assert not decoder.waiting


@pytest.mark.parametrize("size", [32_752, 65_536, 65_537, 600_000])
def test_all_of_a_small_brotli_body_comes_out(size: int) -> None:
    """The library stops at the end of a buffer although more is to come, and says that it would take more."""
    decoder = decoder_for("br", 1_000_000)
    assert decoder is not None
    found = decoder.feed(brotli.compress(bytes(size))) + b"".join(decoder.rest())
    assert len(found) == size
    assert not decoder.failed
