"""What `obol up` runs besides the engines: the commands, and the environment that they get."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gateway.local.data_dir import DataDir, read_json
from gateway.local.engines import LOOPBACK, free_port
from gateway.local.process import Part
from gateway.settings import Settings

_DRAIN_MARGIN_S = 30.0  # a gateway that drains for its full time still has to cut, settle and exit
_WORKER_STOP_S = 60.0
_HURRY_S = 5.0
_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])


async def _migrate(postgres_url: str) -> list[str]:
    from gateway.store import migrate

    return await migrate.run(postgres_url)


async def _seed(settings: Settings, data_dir: Path) -> dict[str, Any]:
    from gateway.local import demo

    return await demo.seed(settings, data_dir)


def _providers() -> list[tuple[str, tuple[str, ...]]]:
    from gateway import providers

    return [(provider.name, tuple(provider.origins)) for provider in providers.load()]


@dataclass(frozen=True, slots=True)
class Commands:
    """What is run. Tests put stand-ins here.

    `program` is followed by `serve`, `worker` or `fake-provider` and options. `providers` gives each name and its
    origins.
    """

    # -P: a directory called `gateway` where the user happens to stand must not be taken for ours.
    program: tuple[str, ...] = (sys.executable, "-P", "-m", "gateway")
    migrate: Callable[[str], Awaitable[list[str]]] = _migrate
    seed: Callable[[Settings, Path], Awaitable[dict[str, Any]]] = _seed
    providers: Callable[[], Iterable[tuple[str, tuple[str, ...]]]] = _providers


def environment(settings: Settings, data: DataDir, port: int, redis_url: str, postgres_url: str) -> dict[str, str]:
    """The variables by which every child, and any command that is run beside, finds the rest."""
    return {
        "OBOL_DATA_DIR": str(data.root),
        "OBOL_HOST": settings.host,
        "OBOL_PORT": str(port),
        "OBOL_REDIS_URL": redis_url,
        "OBOL_POSTGRES_URL": postgres_url,
        "OBOL_MASTER_KEY": settings.master_key or data.master_key(),
        "PROMETHEUS_MULTIPROC_DIR": str(data.metrics),
    }


def demo_environment(
    settings: Settings, providers: Iterable[tuple[str, tuple[str, ...]]], fake_url: str
) -> dict[str, str]:
    """The variables that send to the fake provider what would go to a provider of which we have no key."""
    table = list(providers)
    # Two providers may share an origin: a key for either means that real traffic goes there.
    real = {origin for name, origins in table if name.lower() in settings.provider_keys for origin in origins}
    every = {origin for _, origins in table for origin in origins}
    fakes = dict.fromkeys(sorted(every - real), fake_url.rstrip("/"))
    return {"OBOL_TEST_MODE": "1", "OBOL_UPSTREAM_MAP": json.dumps(fakes | settings.upstream_map)}


@dataclass(frozen=True, slots=True)
class Table:
    """Makes the Part of each of our own processes."""

    commands: Commands
    data: DataDir
    environment: dict[str, str]

    def gateway(self, number: int, descriptor: int, settings: Settings) -> Part:
        """The worker that accepts from the listening socket `descriptor`, which stays open here as well."""
        options = ("--fd", str(descriptor))
        stop_timeout_s = settings.shutdown_drain_s + settings.settle_keep_s + _DRAIN_MARGIN_S
        part = self._part(f"gateway-{number}", ("serve", *options), stop_timeout_s)
        return replace(part, descriptors=(descriptor,))

    def worker(self) -> Part:
        """The background worker."""
        return self._part("worker", ("worker",), _WORKER_STOP_S)

    def fake_provider(self) -> Part:
        """The fake provider, on a port that it keeps when it is started again."""
        options = ("--host", LOOPBACK, "--port", str(free_port()))
        return self._part("fake-provider", ("fake-provider", *options), 5.0)

    def ready_file(self, name: str) -> Path:
        """Where the process `name` writes that it is ready."""
        return self.data.run / f"{name}.json"

    def _part(self, name: str, arguments: tuple[str, ...], stop_timeout_s: float) -> Part:
        ready_file = self.ready_file(name)
        path = os.pathsep.join(filter(None, (_PACKAGE_PARENT, os.environ.get("PYTHONPATH"))))
        return Part(
            name=name,
            argv=(*self.commands.program, *arguments, "--ready-file", str(ready_file)),
            ready=lambda pid: (read_json(ready_file) or {}).get("pid") == pid,
            environment=os.environ | {"PYTHONPATH": path} | self.environment,
            stop_timeout_s=stop_timeout_s,
            hurry_timeout_s=_HURRY_S,
        )
