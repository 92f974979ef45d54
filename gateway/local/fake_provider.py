"""`obol fake-provider`: the fake provider as a process of its own. What it does is told in `gateway/local/fake`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec
import orjson
import uvloop
from aiohttp import web

from gateway.local.fake.directive import Directive, build
from gateway.local.fake.replay import Recordings
from gateway.local.fake.server import FakeServer

DEMO_CHUNK_DELAY_MS = 25


def main(argv: list[str]) -> int:
    """Serve until SIGTERM or SIGINT. Returns 0, 1 if the address is not free, 2 if an argument is not usable."""
    arguments = _parser().parse_args(argv)
    try:
        server = FakeServer(_defaults(arguments), Recordings.load(arguments.replay) if arguments.replay else None)
    except (msgspec.ValidationError, ValueError) as error:
        print(f"obol fake-provider: {error}", file=sys.stderr)
        return 2
    try:
        if arguments.ready_file is not None:
            arguments.ready_file.unlink(missing_ok=True)  # one left by an earlier run would be believed
        uvloop.run(_serve(server, arguments.host, arguments.port, arguments.ready_file))
    except OSError as error:
        print(f"obol fake-provider: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="obol fake-provider", description="A provider to try Obol with.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default 0: any free one)")
    parser.add_argument("--ready-file", type=Path, help='write {"url": ..., "pid": ...} here once listening')
    parser.add_argument("--delay-ms", type=int, default=0, help="wait before the first byte (default 0)")
    parser.add_argument(
        "--chunk-delay-ms",
        type=int,
        default=DEMO_CHUNK_DELAY_MS,
        help=f"wait after each text chunk of a stream (default {DEMO_CHUNK_DELAY_MS})",
    )
    parser.add_argument("--chunks", type=int, help="text chunks of a stream (default: one for each word)")
    parser.add_argument("--fault", default="", help="misbehave so in every answer, as status:429 or truncated")
    parser.add_argument("--replay", type=Path, metavar="DIR", help="serve the recorded exchanges of DIR instead")
    return parser


def _defaults(arguments: argparse.Namespace) -> Directive:
    names = ("delay_ms", "chunk_delay_ms", "chunks", "fault")
    return build(Directive(), {name: getattr(arguments, name) for name in names})


async def _serve(server: FakeServer, host: str, port: int, ready_file: Path | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = server.runner()
    await runner.setup()
    try:
        url = await listen(runner, host, port)
        if ready_file is not None:
            write_ready_file(ready_file, url)
        print(f"fake provider listening on {url}", flush=True)
        await stop.wait()
    finally:
        await runner.cleanup()


async def listen(runner: web.AppRunner, host: str, port: int) -> str:
    """Bind and listen; return the URL with the real port. OSError if the address is not free."""
    site = web.TCPSite(runner, host, port)
    await site.start()
    real_port = runner.addresses[0][1]
    return f"http://[{host}]:{real_port}" if ":" in host else f"http://{host}:{real_port}"


def write_ready_file(path: Path, url: str) -> None:
    """Write the file whole or not at all: whoever waits for it never reads half of it."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_bytes(orjson.dumps({"url": url, "pid": os.getpid()}))
    draft.replace(path)
