"""Which headers pass, and the decoded copy for the meter."""

from __future__ import annotations

import gzip
import sys
import zlib

import brotli
import pytest

from gateway import providers
from gateway.proxy import headers
from gateway.proxy.decoding import AT_ONCE_BYTES, STEP_BYTES, WAITING_BYTES_MAX, decoder_for

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

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
        (b"X-Forwarded-Client-Cert", b"canary"),
        (b"Cf-Connecting-Ip", b"canary"),
        (b"X-HTTP-Method-Override", b"canary"),
        (b"Connection", b"x-secret, keep-alive"),
        (b"Connection", b"X-Other"),
        (b"X-Secret", b"canary"),
        (b"x-other", b"canary"),
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
        (b"br, gzip;q=0.8, zstd", b"br, gzip;q=0.8, zstd"),
        (b"compress, dcb, br", b"br"),
        (b"compress", b"identity"),
        (b"*", b"identity"),
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


PLAIN = b'data: {"choices":[{"delta":{"content":"one"}}]}\n\n' * 500
ENCODED = {
    "gzip": gzip.compress(PLAIN),
    "x-gzip": gzip.compress(PLAIN[:1000]) + gzip.compress(PLAIN[1000:]),
    "deflate": zlib.compress(PLAIN),
    "Deflate": zlib.compress(PLAIN)[2:-4],  # raw, as some servers send it
    "br": brotli.compress(PLAIN),
    "zstd": zstd.compress(PLAIN[:1000]) + zstd.compress(PLAIN[1000:]),
    "gzip, br": brotli.compress(gzip.compress(PLAIN)),
    "identity, zstd": zstd.compress(PLAIN),
}


def decoded(decoder, pieces):
    return b"".join([*(decoder.feed(piece) for piece in pieces), *decoder.rest()])


def cut(data, step):
    return [data[at : at + step] for at in range(0, len(data), step)]


@pytest.mark.parametrize("encoding", ENCODED)
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_a_split_anywhere_decodes_alike(encoding, step):
    decoder = decoder_for(encoding, 1_000_000)
    assert decoded(decoder, cut(ENCODED[encoding], step)) == PLAIN
    assert (decoder.failed, decoder.lost_bytes, decoder.waiting) == (False, 0, False)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_events_can_be_read_as_soon_as_they_have_come(encoding):
    """A provider flushes after each event: none may wait for the next."""
    decoder = decoder_for(encoding, 1_000_000)
    for event, compressed in flushed(encoding, [b"data: %d\n\n" % number for number in range(50)]):
        assert decoder.feed(compressed) == event


def flushed(encoding, events):
    if encoding == "br":
        stream = brotli.Compressor(quality=4)  # the best quality, its default, takes three seconds of a bomb
        return [(event, stream.process(event) + stream.flush()) for event in events]
    if encoding == "zstd":
        stream = zstd.ZstdCompressor()
        return [(event, stream.compress(event, stream.FLUSH_BLOCK)) for event in events]
    stream = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
    return [(event, stream.compress(event) + stream.flush(zlib.Z_SYNC_FLUSH)) for event in events]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_a_bomb_is_bounded(encoding):
    """In what it decodes to, in what one feed gives, and in what waits."""
    bomb = dict(flushed(encoding, [b"\0" * 50_000_000])).popitem()[1]
    decoder = decoder_for(encoding, 5_000_000)
    at_once = [len(decoder.feed(piece)) for piece in cut(bomb, 65_536)]
    assert max(at_once) < AT_ONCE_BYTES + 2 * STEP_BYTES
    assert decoder.waiting and not decoder.failed
    pieces = [len(piece) for piece in decoder.rest()]
    assert max(pieces) <= 2 * STEP_BYTES
    assert 4_800_000 < sum(at_once) + sum(pieces) <= 5_000_000
    assert decoder.failed and not decoder.waiting
    assert decoder.feed(b"more") == b""


def test_what_waits_is_bounded():
    """A body of which each piece decodes to sixteen times its size and more, for megabytes on end."""
    member = gzip.compress(bytes(range(256)) * 400)
    decoder = decoder_for("gzip", 10**10)
    piece = member * (65_536 // len(member))
    feeds = 0
    while not decoder.failed and feeds < 1_000:
        decoder.feed(piece)
        feeds += 1
    assert decoder.failed and feeds < 100
    assert WAITING_BYTES_MAX < decoder.lost_bytes < WAITING_BYTES_MAX + len(piece)


def test_a_window_of_a_gigabyte_is_refused():
    options = {zstd.CompressionParameter.window_log: 27}
    decoder = decoder_for("zstd", 1_000_000)
    compressor = zstd.ZstdCompressor(options=options)
    assert decoded(decoder, [compressor.compress(PLAIN, compressor.FLUSH_BLOCK)]) == b""
    assert decoder.failed


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_rubbish_ends_the_decoding_and_is_counted(encoding):
    decoder = decoder_for(encoding, 1_000_000)
    assert decoded(decoder, [b"\xfenot compressed at all"]) == b""
    assert decoder.failed
    decoder.feed(b"more")
    assert decoder.lost_bytes >= 4


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd"])
def test_a_body_that_was_cut_short_is_read_as_far_as_it_goes(encoding):
    compressed = ENCODED[encoding]
    found = decoded(decoder_for(encoding, 1_000_000), [compressed[:-4]])
    assert PLAIN.startswith(found) and (found or encoding == "zstd")


def test_an_encoding_that_nobody_asked_for_is_counted_as_lost():
    assert decoder_for("", 1) is None
    assert decoder_for(" Identity ", 1) is None
    for encoding in ("compress", "gzip, aws-chunked", "gzip,gzip,gzip,gzip"):
        decoder = decoder_for(encoding, 1_000)
        assert decoder.failed
        assert (decoder.feed(b"12345"), decoder.lost_bytes) == (b"", 5)
