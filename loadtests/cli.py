"""The command line of the load test."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadtests import report, table
from loadtests.arguments import integer, number
from loadtests.peers.servers import fast_provider
from loadtests.plan import (
    DURATION_MAX_S,
    PROCESSES_MAX,
    RATE_MAX_PER_S,
    SCENARIOS,
    USERS_MAX,
    Plan,
    PlanError,
    check_target,
)
from loadtests.result import Result
from loadtests.run import run, split
from loadtests.scenario import build
from loadtests.tally import Window

WARM_UP_MAX_S = 60
DEMO_FIELDS = {
    "key": "forward_token",
    "secret_key": "secret_key",
    "meter_slug": "meter_slug",
    "connection_id": "connection_id",
}
"""By field of Plan: where demo.json has it."""


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m loadtests",
        description="Load an Obol gateway, a peer or a provider, and report rate, latency, errors, CPU and memory.",
        epilog="--target ending in /v1/ is an Obol gateway's base URL; a bare origin is a provider or a transparent "
        "proxy (/v1/chat/completions is added); any other URL is used as it stands.",
    )
    found.add_argument(
        "--target", help="may be left out with --with-provider: then the fast provider itself is measured"
    )
    found.add_argument(
        "--compare", nargs="+", default=[], metavar="URL", help="further targets, measured one after another"
    )
    found.add_argument("--scenario", choices=SCENARIOS, default="chat")
    found.add_argument("--users", type=integer(1, USERS_MAX), default=16, help="connections")
    found.add_argument("--duration-s", type=number(0.1, DURATION_MAX_S), default=10.0)
    found.add_argument("--warm-up-s", type=number(0, WARM_UP_MAX_S), default=1.0, help="run before, and thrown away")
    found.add_argument(
        "--rate", type=number(0.1, RATE_MAX_PER_S), default=0.0, help="requests/s: open loop; without: closed"
    )
    found.add_argument("--processes", type=integer(1, PROCESSES_MAX), default=1, help="client processes")
    found.add_argument("--timeout-s", type=number(0.1, DURATION_MAX_S), default=30.0, help="of one request")
    found.add_argument("--i-own-this-target", action="store_true", help="allow a target that is not on loopback")
    _add_request_arguments(found)
    found.add_argument(
        "--with-provider", action="store_true", help="start the fast fake provider for the time of the test"
    )
    found.add_argument("--provider-port", type=integer(0, 65535), help="its port; implies --with-provider")
    found.add_argument("--report", type=Path, metavar="FILE.html")
    found.add_argument("--json", type=Path, metavar="FILE")
    return found


def _add_request_arguments(found: argparse.ArgumentParser) -> None:
    request = found.add_argument_group("requests")
    request.add_argument("--key", default="", help="sent as Authorization: Bearer")
    request.add_argument("--secret-key", default="", help="reports: the merchant's, where it is not --key")
    request.add_argument("--demo-file", type=Path, help="demo.json of `obol up --demo`: keys, meter and connection")
    request.add_argument(
        "--path", default="", help="path and query of chat completions, in place of what the URL implies"
    )
    request.add_argument("--model", default="gpt-4o-mini")
    request.add_argument("--prompt-bytes", type=integer(1, 1024 * 1024), default=64)
    request.add_argument("--max-tokens", type=integer(1, 1_000_000), default=256)
    request.add_argument("--chunks", type=integer(1, 100_000), default=50, help="of a stream, asked of a fake provider")
    request.add_argument("--chunk-interval-ms", type=integer(0, 60_000), default=5)
    request.add_argument("--weights", default="chat=6,stream=3,reports=1", help="of the mixed scenario")
    request.add_argument("--meter-slug", default="", help="reports: the meter")
    request.add_argument("--connection-id", default="", help="reports: the customer's connection")


def plans(arguments: argparse.Namespace, provider_url: str | None) -> list[Plan]:
    """One plan a target, all checked before the first byte is sent. Raise PlanError naming the flag."""
    first = arguments.target or provider_url
    if not first:
        raise PlanError("--target is missing (or give --with-provider to measure the fast provider itself)")
    demo = _demo(arguments.demo_file)
    found = []
    for flag, url in [("--target", first), *(("--compare", url) for url in arguments.compare)]:
        check_target(url, owned=arguments.i_own_this_target, flag=flag)
        plan = Plan(
            target=url,
            scenario=arguments.scenario,
            users=arguments.users,
            duration_s=arguments.duration_s,
            rate_per_s=arguments.rate,
            key=arguments.key or demo.get("key", ""),
            secret_key=arguments.secret_key or demo.get("secret_key", ""),
            path=arguments.path,
            model=arguments.model,
            prompt_bytes=arguments.prompt_bytes,
            max_tokens=arguments.max_tokens,
            chunks=arguments.chunks,
            chunk_interval_ms=arguments.chunk_interval_ms,
            weights=_weights(arguments.weights),
            meter_slug=arguments.meter_slug or demo.get("meter_slug", ""),
            connection_id=arguments.connection_id or demo.get("connection_id", ""),
            run_id=uuid.uuid4().hex[:12],
            timeout_s=arguments.timeout_s,
            grace_s=arguments.timeout_s,
        )
        build(plan)
        split(plan, arguments.processes)
        found.append(plan)
    return found


def _demo(path: Path | None) -> dict[str, str]:
    """What the demo file has of DEMO_FIELDS."""
    if path is None:
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlanError(f"--demo-file {path} cannot be read: {error}") from None
    return {name: str(content[field]) for name, field in DEMO_FIELDS.items() if content.get(field)}


def _weights(text: str) -> dict[str, int]:
    try:
        weights = {name: int(value) for name, _, value in (part.partition("=") for part in text.split(","))}
    except ValueError:
        raise PlanError(f"--weights {text!r} is not like chat=6,stream=3,reports=1") from None
    if any(not 0 <= value <= 100 for value in weights.values()):
        raise PlanError("--weights: each weight is between 0 and 100")
    return weights


@contextlib.contextmanager
def _provider(arguments: argparse.Namespace) -> Iterator[str | None]:
    if not arguments.with_provider and arguments.provider_port is None:
        yield None
        return
    try:
        with fast_provider(port=arguments.provider_port or 0) as server:
            print(f"fast provider: {server.url}", file=sys.stderr)
            yield server.url
    except (OSError, subprocess.SubprocessError) as error:
        raise PlanError(f"--provider-port: the fast provider did not start: {error}") from None


async def _measure(plan: Plan, arguments: argparse.Namespace) -> Result:
    print(f"{table.label(plan.target)}: {plan.scenario}", file=sys.stderr)
    if arguments.warm_up_s:
        warm_up = msgspec.structs.replace(plan, duration_s=arguments.warm_up_s, run_id=plan.run_id + "w")
        await run(warm_up, processes=arguments.processes)
    return await run(plan, processes=arguments.processes, progress=_show)


def _show(window: Window, samples: Sequence[Any]) -> None:
    line = table.progress_line(window, samples)
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)


async def _measure_all(found: Sequence[Plan], arguments: argparse.Namespace) -> list[Result]:
    results = []
    for plan in found:
        results.append(await _measure(plan, arguments))
        if sys.stderr.isatty():
            print(file=sys.stderr)
    return results


def _write(results: Sequence[Result], arguments: argparse.Namespace) -> None:
    when = time.strftime("%Y-%m-%d %H:%M:%S %z")
    if arguments.report:
        title = f"Load test of {', '.join(table.label(result.target) for result in results)}"
        arguments.report.write_text(report.html(results, title, when), encoding="utf-8")
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(_without_key(results), indent=1))


def _without_key(results: Sequence[Result]) -> bytes:
    """The results as JSON. The credentials are not part of a result."""
    for result in results:
        result.plan = msgspec.structs.replace(result.plan, key="", secret_key="")
    summary = [dict(table.rows(result)) | {"target": result.target} for result in results]
    return msgspec.json.encode({"summary": summary, "results": results})


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        with _provider(arguments) as provider_url:
            results = asyncio.run(_measure_all(plans(arguments, provider_url), arguments))
    except PlanError as error:
        print(f"loadtests: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(table.text(results))
    _write(results, arguments)
    return 0 if all(result.total().all_kinds().succeeded for result in results) else 1
