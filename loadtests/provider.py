"""A fast fake provider: `python -m loadtests.provider --port N [--workers N]`.

It speaks just enough of the chat completions format (JSON, and SSE streams with a usage chunk) to stand behind a
gateway that is measured, and does as little as possible: fixed bytes, one parser pass, one shared timer. For faithful
answers, faults and other formats there is `obol fake-provider`, which takes the same directive in the prompt:
`[[fake chunks=50 chunk_delay_ms=5]]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import cast

import httptools
import uvloop

from loadtests.arguments import integer
from loadtests.timer_wheel import TimerWheel

BODY_BYTES_MAX = 32 * 1024 * 1024
CHUNKS_MAX = 100_000
CHUNK_DELAY_MS_MAX = 60_000
WORKERS_MAX = 16
PIPELINED_MAX = 64
BURST_CHUNKS = 64
"""A stream without a delay is written in pieces of this many chunks."""
PROMPT_TOKENS = 16
COMPLETION_TOKENS = 32

_STREAMS = re.compile(rb'"stream"\s*:\s*true')
_INCLUDES_USAGE = re.compile(rb'"include_usage"\s*:\s*true')
_DIRECTIVE = re.compile(rb"\[\[fake ([^\]]{0,200})\]\]")
_SETTING = re.compile(rb"(\w+)=(\d{1,9})")

_IDENTITY = {"id": "chatcmpl-load", "created": 1700000000, "model": "gpt-4o-mini-2024-07-18"}


def _json(fields: Mapping[str, object]) -> bytes:
    return json.dumps(_IDENTITY | dict(fields), separators=(",", ":")).encode()


def _usage(completion_tokens: int) -> dict[str, object]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": completion_tokens,
        "total_tokens": PROMPT_TOKENS + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def _completion() -> bytes:
    message = {"role": "assistant", "content": "word " * COMPLETION_TOKENS, "refusal": None}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return _json({"object": "chat.completion", "choices": choices, "usage": _usage(COMPLETION_TOKENS)})


def _event(delta: dict[str, object], finish: str | None = None) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + _json({"object": "chat.completion.chunk", "choices": choices}) + b"\n\n"


def _frame(data: bytes) -> bytes:
    """One chunk of the chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _response(content_type: bytes, body: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (status, content_type, len(body))
    return head + body


COMPLETION = _response(b"application/json", _completion())
HEALTH = _response(b"application/json", b'{"status":"ok"}')
TOO_LARGE = _response(b"application/json", b'{"error":{"message":"body too large"}}', b"413 Payload Too Large")
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
ROLE_FRAME = _frame(_event({"role": "assistant", "content": ""}))
WORD_FRAME = _frame(_event({"content": "word "}))
BURST = WORD_FRAME * BURST_CHUNKS


@lru_cache(maxsize=256)
def stream_end(chunks: int, with_usage: bool) -> bytes:
    """What follows the `chunks` content chunks: finish reason, usage where asked for, the end marker."""
    end = _frame(_event({}, "stop"))
    if with_usage:
        usage = {"object": "chat.completion.chunk", "choices": [], "usage": _usage(chunks)}
        end += _frame(b"data: " + _json(usage) + b"\n\n")
    return end + _frame(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Stream:
    """One SSE answer under way. Waits while its reader is slow."""

    def __init__(self, connection: Provider, wheel: TimerWheel, chunks: int, delay_ms: int, with_usage: bool) -> None:
        self._connection, self._wheel = connection, wheel
        self._left, self._delay_ms = chunks, delay_ms
        self._end = stream_end(chunks, with_usage)
        connection.write(STREAM_HEAD + ROLE_FRAME)
        if delay_ms:
            wheel.after(delay_ms, self._step)
        else:
            self._burst()

    def _step(self) -> None:
        if self._connection.closed:
            return
        if self._connection.writable:
            if self._left == 0:
                self._finish()
                return
            self._left -= 1
            self._connection.write(WORD_FRAME)
        self._wheel.after(self._delay_ms, self._step)

    def _burst(self) -> None:
        if self._connection.closed:
            return
        if not self._connection.writable:
            self._wheel.after(1, self._burst)
            return
        count = min(self._left, BURST_CHUNKS)
        self._left -= count
        self._connection.write(BURST if count == BURST_CHUNKS else WORD_FRAME * count)
        if self._left:
            asyncio.get_running_loop().call_soon(self._burst)
        else:
            self._finish()

    def _finish(self) -> None:
        self._connection.write(self._end)
        self._connection.answered()


class Provider(asyncio.Protocol):
    """One connection. A pipelined second request is read once the first is answered."""

    def __init__(self, wheel: TimerWheel, default_chunks: int, default_delay_ms: int) -> None:
        self._wheel = wheel
        self._defaults = (default_chunks, default_delay_ms)
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []
        self._size = 0
        self._waiting: list[bytes] = []
        self._answering = False
        self._keep_alive = True
        self.closed = False
        self.writable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _: Exception | None) -> None:
        self.closed = True

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._transport.abort()

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size <= BODY_BYTES_MAX:
            self._body.append(body)

    def on_message_complete(self) -> None:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        oversized, self._size = self._size > BODY_BYTES_MAX, 0
        self._body = []
        self._keep_alive = self._parser.should_keep_alive() and not oversized
        if oversized:
            self.write(TOO_LARGE)
            self._transport.close()
        elif len(self._waiting) >= PIPELINED_MAX:
            self._transport.abort()
        elif self._answering:
            self._waiting.append(body)
        else:
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        if not _STREAMS.search(body):
            self.write(COMPLETION if body else HEALTH)
            self.answered()
            return
        self._answering = True
        chunks, delay_ms = self._directive(body)
        Stream(self, self._wheel, chunks, delay_ms, _INCLUDES_USAGE.search(body) is not None)

    def _directive(self, body: bytes) -> tuple[int, int]:
        """Chunks and delay in ms that the prompt asks for, within the limits."""
        chunks, delay_ms = self._defaults
        found = _DIRECTIVE.search(body)
        if found:
            settings = {name: int(value) for name, value in _SETTING.findall(found[1])}
            chunks = settings.get(b"chunks", chunks)
            delay_ms = settings.get(b"chunk_delay_ms", delay_ms)
        return min(max(chunks, 1), CHUNKS_MAX), min(delay_ms, CHUNK_DELAY_MS_MAX)

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def answered(self) -> None:
        """The answer is written: close, or go on with a request that waits."""
        self._answering = False
        if not self._keep_alive:
            self._transport.close()
        elif self._waiting:
            self._answer(self._waiting.pop(0))


def _socket(host: str, port: int, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    return listener


def _serve(host: str, port: int, shared: bool, chunks: int, delay_ms: int, announce: bool) -> None:
    async def run() -> None:
        listener = _socket(host, port, shared)
        wheel = TimerWheel()
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGINT, stop.set)
        server = await loop.create_server(lambda: Provider(wheel, chunks, delay_ms), sock=listener, backlog=4096)
        if announce:
            _announce(host, listener.getsockname()[1])
        await stop.wait()
        server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def _announce(host: str, port: int) -> None:
    shown = f"[{host}]" if ":" in host else host
    print(json.dumps({"url": f"http://{shown}:{port}", "pid": os.getpid()}), flush=True)


def _serve_with_workers(arguments: argparse.Namespace) -> None:
    """N processes share the port. This one serves, too; the others end with it."""
    placeholder = _socket(arguments.host, arguments.port, True)
    port = placeholder.getsockname()[1]
    settings = (arguments.host, port, True, arguments.chunks, arguments.chunk_delay_ms)
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=_serve, args=(*settings, False), daemon=True) for _ in range(arguments.workers - 1)
    ]
    for process in others:
        process.start()
    placeholder.close()
    try:
        _serve(*settings, True)
    finally:
        for process in others:
            process.terminate()
            process.join(timeout=5)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.provider", description="A fast fake provider on loopback."
    )
    parser.add_argument("--host", default="127.0.0.1", choices=["127.0.0.1", "::1", "localhost"])
    parser.add_argument("--port", type=integer(0, 65535), default=0, help="0: any free one, printed as JSON")
    parser.add_argument("--workers", type=integer(1, WORKERS_MAX), default=1)
    parser.add_argument(
        "--chunks", type=integer(1, CHUNKS_MAX), default=50, help="of a stream whose prompt says nothing"
    )
    parser.add_argument("--chunk-delay-ms", type=integer(0, CHUNK_DELAY_MS_MAX), default=5)
    arguments = parser.parse_args(argv)
    try:
        if arguments.workers > 1:
            _serve_with_workers(arguments)
        else:
            _serve(arguments.host, arguments.port, False, arguments.chunks, arguments.chunk_delay_ms, True)
    except OSError as error:
        print(f"cannot listen on {arguments.host}:{arguments.port}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
