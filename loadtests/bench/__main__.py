"""`python -m loadtests.bench`: see the package's docstring."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import uvloop

from loadtests.bench import figures, measure
from loadtests.bench.figures import Figures
from loadtests.peers import servers
from loadtests.peers.obol import obol
from loadtests.peers.servers import Server

FILES_MAX = 20_000


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int
    chat_s: float
    latency_rounds: int


FULL = Size(rounds=3, chat_s=2.0, latency_rounds=800)
QUICK = Size(rounds=1, chat_s=1.5, latency_rounds=300)


@dataclass(frozen=True, slots=True)
class Cores:
    """Where the measured server runs, and everything else."""

    server: tuple[int, ...]
    others: tuple[int, ...]


def cores() -> Cores:
    """One core for the server, the rest for the others; the same one for all where there is only one."""
    if not hasattr(os, "sched_getaffinity"):
        return Cores((), ())
    available = sorted(os.sched_getaffinity(0))
    return Cores((available[0],), tuple(available[1:]) or (available[0],))


class Bench:
    """The servers that run and what was measured of them. A server that fails leaves the others' figures standing."""

    def __init__(self, size: Size, places: Cores, names: Sequence[str]) -> None:
        self._size, self._places, self._names = size, places, names
        self.figures: dict[str, Figures] = {}
        self.failures: list[str] = []

    def run(self) -> None:
        with contextlib.ExitStack() as stack:
            provider = stack.enter_context(servers.fast_provider(cores=self._places.others))
            running = [server for name in self._names if (server := self._start(stack, name, provider.url))]
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._measure(provider, running))

    def _start(self, stack: contextlib.ExitStack, name: str, upstream: str) -> Server | None:
        say(f"starting {name}")
        if name == figures.NGINX and servers.nginx_binary() is None:
            say("nginx not installed: column skipped")
            return None
        starts: dict[str, Callable[[], contextlib.AbstractContextManager[Server]]] = {
            figures.NGINX: lambda: servers.nginx(upstream, self._places.server),
            figures.BARE: lambda: servers.bare_aiohttp(upstream, self._places.server),
            figures.OBOL: lambda: obol(upstream, self._places.server),
        }
        try:
            server = stack.enter_context(starts[name]())
        except (subprocess.SubprocessError, OSError, KeyError) as error:
            self._failed(f"{name} did not start: {error}")
            return None
        self.figures[name] = Figures(name)
        return server

    def _failed(self, text: str) -> None:
        self.failures.append(text)
        say(text)

    async def _measure(self, provider: Server, running: list[Server]) -> None:
        for server in running:
            await self._guarded(server, self._memory(server))
        await self._latency(provider, running)
        for number in range(self._size.rounds):
            say(f"round {number + 1} of {self._size.rounds}")
            turn = number % max(1, len(running))
            for server in running[turn:] + running[:turn]:
                await self._guarded(server, self._round(server))

    async def _guarded(self, server: Server, measurement: Coroutine[Any, Any, None]) -> None:
        try:
            await measurement
        except (measure.MeasurementError, OSError) as error:
            self._failed(f"{server.name}: {error}")

    async def _memory(self, server: Server) -> None:
        """First, while the heap has not grown from anything else."""
        say(f"memory of {measure.OPEN_STREAMS} streams: {server.name}")
        await measure.warm_up(server)
        found = await measure.stream_memory_bytes(server)
        self.figures[server.name].stream_memory_bytes.append(found)

    async def _latency(self, provider: Server, running: Sequence[Server]) -> None:
        say("latency at one connection, direct and proxied in turn")
        try:
            added = await measure.added_p50_us(provider, running, self._size.latency_rounds)
        except (measure.MeasurementError, OSError) as error:
            self._failed(f"latency: {error}")
            return
        for name, value in added.items():
            self.figures[name].added_p50_us.append(value)

    async def _round(self, server: Server) -> None:
        found = self.figures[server.name]
        chat = await measure.chat_cost(server, self._size.chat_s)
        found.request_cpu_us.append(chat.server_us)
        found.request_everything_us.append(chat.everything_us)
        found.requests_per_s.append(chat.events / chat.seconds)
        burst = await measure.burst_cost(server, self._size.chat_s)
        found.burst_cpu_us.append(burst.server_us)
        chunk = await measure.chunk_cost(server)
        found.chunk_cpu_us.append(chunk.server_us)
        found.chunk_everything_us.append(chunk.everything_us)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _machine(places: Cores) -> dict[str, object]:
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "server_cores": places.server,
        "other_cores": places.others,
    }


def _parser() -> argparse.ArgumentParser:
    names = [figures.NGINX, figures.BARE, figures.OBOL]
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench", description="Obol beside nginx and a bare aiohttp pass-through, in one run."
    )
    parser.add_argument("--quick", action="store_true", help="one round, about 30 s")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--enforce", action="store_true", help="exit 1 when a floor is exceeded or was not measured")
    return parser


def _terminate(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _terminate)  # the servers that were started are stopped on the way out
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, FILES_MAX) if hard > 0 else FILES_MAX, hard))
    places, started = cores(), time.monotonic()
    if places.others:
        os.sched_setaffinity(0, places.others)
    if places.server == places.others:
        say("one core only: client, provider and server share it; read the CPU figures, not the latency")
    bench = Bench(QUICK if arguments.quick else FULL, places, arguments.only)
    bench.run()
    return _finish(bench, arguments, places, time.monotonic() - started)


def _finish(bench: Bench, arguments: argparse.Namespace, places: Cores, seconds: float) -> int:
    found = list(bench.figures.values())
    judgements = figures.judge(found)
    print(figures.table(found))
    for failure in bench.failures:
        print(f"failed: {failure}")
    if arguments.json:
        content = {"machine": _machine(places), "seconds": round(seconds, 1), "figures": found, "floors": judgements}
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(content | {"failures": bench.failures})))
    short = arguments.enforce and any(judgement.kept is not True for judgement in judgements)
    return 1 if bench.failures or short else 0


if __name__ == "__main__":
    sys.exit(main())
