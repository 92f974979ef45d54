"""A bare pass-through on aiohttp: what a gateway in Python costs when it does nothing but pass bytes.

`python -m loadtests.peers.bare --upstream http://127.0.0.1:9000`: one process, one ClientSession, the answer streamed
on as it arrives. No billing, no limits: a yardstick, not a server to run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys

import aiohttp
import uvloop
from aiohttp import web

HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host", "content-length"}
)
BODY_BYTES_MAX = 32 * 1024 * 1024


class PassThrough:
    """The handler of every request."""

    def __init__(self, session: aiohttp.ClientSession, upstream: str) -> None:
        self._session = session
        self._upstream = upstream.rstrip("/")

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        body = await request.read()
        url = self._upstream + request.raw_path
        async with self._session.request(request.method, url, headers=headers, data=body) as answer:
            response = web.StreamResponse(status=answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    response.headers.add(name, value)
            if answer.content_length is not None:
                response.content_length = answer.content_length
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response


async def serve(upstream: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=600, sock_connect=10)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
        server = web.Server(PassThrough(session, upstream), access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
        await site.start()
        print(json.dumps({"url": site_url(runner), "pid": os.getpid()}), flush=True)
        await stop.wait()
        await runner.cleanup()


def site_url(runner: web.ServerRunner) -> str:
    host, port = runner.addresses[0][:2]
    return f"http://{host}:{port}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.peers.bare", description="A bare aiohttp pass-through.")
    parser.add_argument("--upstream", required=True)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(arguments.upstream))
    return 0


if __name__ == "__main__":
    sys.exit(main())
