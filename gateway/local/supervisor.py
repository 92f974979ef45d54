"""`obol up`: the engines, the gateways and the background worker of one machine, started in order and kept alive.

    engines -> migrate -> [fake provider -> demo merchant] -> gateways + background worker -> ready

Stopping goes the other way, so that every part finds what it needs until it has ended. If the supervisor itself is
killed, the kernel tells each child (see process.py) and the next start finds everything as a crash leaves it: no
settle that was acknowledged is lost, because both engines have it on disk.

The listening sockets are held open here, one a gateway, and inherited: a gateway that is replaced or started again
finds in its socket's queue who came meanwhile, so that neither a roll nor a crash refuses a connection.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway import settings as settings_module
from gateway.errors import ConfigurationError
from gateway.local import listen, parts, welcome
from gateway.local.child import Child
from gateway.local.data_dir import DataDir, read_json
from gateway.local.engines import PREPARE_ATTEMPTS
from gateway.local.postgres import Postgres
from gateway.local.process import Part
from gateway.local.valkey import Valkey
from gateway.settings import Settings

_ANSWER_TIMEOUT_S = 30.0
_ANSWER_POLL_S = 0.1
_LOG_CHECK_S = 30.0
_LOG_BYTES_MAX = 64 * 1024 * 1024
_GENERATIONS_MAX = 4
"""Of gateways that live at once: a roll waits while so many earlier ones still end their calls."""


def main(settings: Settings, *, demo: bool, commands: parts.Commands | None = None) -> int:
    """Run until a signal ends it; return the exit code. Raise ConfigurationError if it cannot start."""
    return asyncio.run(Supervisor(settings, demo=demo, commands=commands or parts.Commands()).run())


@dataclass(slots=True)
class _Children:
    """Who runs now. `starting` and `retiring` are those that a roll has begun to put in and to take out."""

    valkey: Child | None = None
    postgres: Child | None = None
    fake_provider: Child | None = None
    gateways: list[Child] = field(default_factory=list)
    worker: Child | None = None
    starting: list[Child] = field(default_factory=list)
    retiring: list[Child] = field(default_factory=list)

    def all(self) -> list[Child]:
        singles = (self.worker, self.fake_provider, self.postgres, self.valkey)
        return [*self.gateways, *self.starting, *self.retiring, *filter(None, singles)]


class Supervisor:
    """One `obol up`. SIGINT and SIGTERM stop it: a second one cuts the calls under way, a third one kills.

    SIGHUP replaces the background worker, then its gateways one by one.
    """

    def __init__(self, settings: Settings, *, demo: bool, commands: parts.Commands) -> None:
        self._settings = settings
        self._demo = demo
        self._commands = commands
        self._data = DataDir(Path(settings.data_dir))
        self._children = _Children()
        self._retiring: set[asyncio.Task[None]] = set()
        self._table = parts.Table(commands, self._data, {})
        self._slots: list[socket.socket] = []
        self._port = 0
        self._ready = False
        self._stop = asyncio.Event()
        self._stop_signals = 0
        self._roll = asyncio.Event()
        self._had_terminal = os.isatty(0)

    async def run(self) -> int:
        """Start everything, watch it until a signal comes, stop everything. Return the exit code."""
        self._data.create()
        with (
            self._data.owned(),
            listen.slots(self._settings.host, self._settings.port, self._settings.workers or _cores()) as self._slots,
            self._signals(),
        ):
            self._port = int(self._slots[0].getsockname()[1])
            try:
                if await self._unless_stopped(self._start()):
                    await self._unless_stopped(self._watch())
            finally:
                await self._shut_down()
        return 0

    # Starting

    async def _start(self) -> None:
        redis_url, postgres_url = await self._start_engines()
        environment = parts.environment(self._settings, self._data, self._port, redis_url, postgres_url)
        self._table = parts.Table(self._commands, self._data, environment)
        await self._migrate(postgres_url)
        seeded = await self._start_demo() if self._demo else None
        self._data.publish_environment(self._table.environment)
        await self._start_gateways()
        await self._until_answering()
        self._ready = True
        self._publish()
        _write(sys.stdout, welcome.text(self._state(), self._data.root, seeded))

    async def _start_engines(self) -> tuple[str, str]:
        """The URLs of Redis and PostgreSQL: the configured ones, or those of engines of our own."""
        redis_url, postgres_url = self._settings.redis_url, self._settings.postgres_url
        if not redis_url:
            valkey = Valkey(self._data.root)
            self._children.valkey = self._child(valkey.prepare)
            await self._children.valkey.start(PREPARE_ATTEMPTS)
            redis_url = valkey.url
        if not postgres_url:
            postgres = Postgres(self._data.root, self._settings.pg_bin_dir)
            self._children.postgres = self._child(postgres.prepare)
            await self._children.postgres.start(PREPARE_ATTEMPTS)
            postgres_url = postgres.url
        return redis_url, postgres_url

    async def _migrate(self, postgres_url: str) -> None:
        try:
            await self._commands.migrate(postgres_url)
        except ConfigurationError:
            raise
        except Exception as error:  # whatever the driver or the database says is for the operator
            raise ConfigurationError(f"the database cannot be migrated: {error or type(error).__name__}") from error

    async def _start_demo(self) -> dict[str, Any]:
        """Start the fake provider, have the children send to it, and make the demo merchant."""
        self._children.fake_provider = self._child(self._table.fake_provider)
        await self._children.fake_provider.start(PREPARE_ATTEMPTS)
        url = str(self._fake_provider_url())
        self._table.environment.update(parts.demo_environment(self._settings, self._commands.providers(), url))
        settings = settings_module.load(os.environ | self._table.environment)
        return await self._commands.seed(settings, self._data.root)

    async def _start_gateways(self) -> None:
        self._children.gateways = [self._gateway(index) for index in range(len(self._slots))]
        self._children.worker = self._child(self._table.worker)
        await _together(child.start() for child in (*self._children.gateways, self._children.worker))

    async def _until_answering(self) -> None:
        answer = ""
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                while answer != "200":
                    answer = await asyncio.to_thread(listen.ready_status, self._settings.host, self._port)
                    await asyncio.sleep(0 if answer == "200" else _ANSWER_POLL_S)
        except TimeoutError:
            raise ConfigurationError(
                f"the gateways run, but GET /readyz says after {_ANSWER_TIMEOUT_S:g} s: {answer}"
            ) from None

    def _gateway(self, index: int) -> Child:
        descriptor = self._slots[index].fileno()
        return self._child(lambda: self._table.gateway(index + 1, descriptor, self._settings))

    def _child(self, prepare: Callable[[], Part]) -> Child:
        return Child(prepare, lambda name: self._data.logs / f"{name}.log", self._say, self._publish)

    # Running

    async def _watch(self) -> None:
        """Replace the gateways when asked to, and keep the logs within bounds, for ever."""
        while True:
            try:
                async with asyncio.timeout(_LOG_CHECK_S):
                    await self._roll.wait()
            except TimeoutError:
                await asyncio.to_thread(_bound_logs, self._data.logs)
                continue
            self._roll.clear()
            await self._replace_all()

    async def _replace_all(self) -> None:
        """Start each process anew beside the old one, then retire the old one. The background worker first, and until
        it has ended: an older one cannot record all that gateways of a newer version write."""
        children = self._children
        await self._until_few_retire()
        try:
            if (old_worker := children.worker) is not None:
                children.worker = await self._started(self._child(self._table.worker))
                await self._retired(old_worker, wait_s=None)
            for index, old in enumerate(children.gateways):
                children.gateways[index] = await self._started(self._gateway(index))
                await self._retired(old, wait_s=self._settings.roll_wait_s)
        except ConfigurationError as error:
            self._say(f"the roll stops here, those not yet replaced go on: {error}")
            return
        self._say("the background worker and every gateway have been replaced")

    async def _until_few_retire(self) -> None:
        limit = (_GENERATIONS_MAX - 1) * len(self._slots)
        if len(self._retiring) > limit:
            self._say(f"the roll waits: {len(self._retiring)} processes of earlier ones still end their calls")
        while len(self._retiring) > limit:
            await asyncio.wait(self._retiring, return_when=asyncio.FIRST_COMPLETED)

    async def _started(self, new: Child) -> Child:
        """A child that is ready; if it does not get so, nothing of it is left."""
        self._children.starting.append(new)
        try:
            await new.start()
        except BaseException:
            await new.stop()
            raise
        finally:
            self._children.starting.remove(new)
        return new

    async def _retired(self, old: Child, *, wait_s: float | None) -> None:
        """Have a replaced child end its calls; wait for it, but not longer than `wait_s`."""
        self._children.retiring.append(old)
        task = asyncio.create_task(self._retire(old))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        self._publish()
        await asyncio.wait([task], timeout=wait_s)

    async def _retire(self, old: Child) -> None:
        await old.stop()
        self._children.retiring.remove(old)
        self._publish()

    def _publish(self) -> None:
        """Make up.json say what is so now."""
        if not self._ready:
            return
        state = self._state()
        try:
            self._data.publish(state)
        except OSError as error:  # a full disk must not end the care for the children
            self._say(f"up.json is out of date: {error}")

    def _state(self) -> dict[str, Any]:
        children = self._children
        origin = listen.url_of(self._settings.host, self._port)
        return {
            "base_url": f"{origin}/v1/",
            "dashboard_url": f"{origin}/dashboard",
            "metrics_url": f"{origin}/metrics",
            "redis_url": self._table.environment["OBOL_REDIS_URL"],
            "postgres_url": self._table.environment["OBOL_POSTGRES_URL"],
            "pid": os.getpid(),
            "workers": [child.pid for child in children.gateways if child.pid is not None],
            "draining": [child.pid for child in children.retiring if child.pid is not None],
            "worker_pid": children.worker and children.worker.pid,
            "valkey_pid": children.valkey and children.valkey.pid,
            "postgres_pid": children.postgres and children.postgres.pid,
            "fake_provider_url": self._fake_provider_url(),
        }

    def _fake_provider_url(self) -> str | None:
        if self._children.fake_provider is None:
            return None
        return str((read_json(self._table.ready_file("fake-provider")) or {}).get("url"))

    def _say(self, line: str) -> None:
        _write(sys.stderr, f"obol: {line}\n")

    # Stopping

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handlers = {signal.SIGINT: self._on_stop, signal.SIGTERM: self._on_stop, signal.SIGHUP: self._on_hangup}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def _on_stop(self) -> None:
        self._stop_signals += 1
        self._stop.set()
        if self._stop_signals == 1:
            return
        for child in self._children.all():
            if self._stop_signals == 2:
                child.hurry()
            else:
                child.kill()

    def _on_hangup(self) -> None:
        """A request to roll, or the end of the terminal that we were started from: then a stop."""
        if self._had_terminal and not os.isatty(0):
            self._on_stop()
        else:
            self._roll.set()

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do `work`; True if it came to its end, False if a signal asked to stop before."""
        task, stop = asyncio.create_task(work), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pending in (task, stop):
                pending.cancel()
            await asyncio.wait({task, stop})
        if task.cancelled():
            return False
        task.result()
        return True

    async def _shut_down(self) -> None:
        """Stop in the order in which they need each other: the gateways drain first, the engines go last."""
        children = self._children
        if self._ready:
            bound_s = self._settings.shutdown_drain_s
            self._say(f"stopping: open requests have up to {bound_s} s (Ctrl-C again cuts them, a third time kills)")
        gateways = asyncio.gather(*self._retiring, *(child.stop() for child in children.gateways))
        await asyncio.sleep(0)  # from here on nobody is started again: the sockets may go, before the gateways' own
        for listening in self._slots:
            listening.close()
        await gateways
        for child in filter(None, (children.worker, children.fake_provider, children.postgres, children.valkey)):
            await child.stop()
        self._data.withdraw()


async def _together(starts: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all at once; raise the first failure as it is, not in a group."""
    try:
        async with asyncio.TaskGroup() as group:
            for start in starts:
                group.create_task(start)
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bound_logs(directory: Path) -> None:
    """Keep the last part of a log that has grown too large, beside a fresh one.

    Children append through a descriptor that they hold, so the file is copied and emptied, not renamed.
    """
    for log in directory.glob("*.log"):
        if log.stat().st_size > _LOG_BYTES_MAX:
            shutil.copyfile(log, log.with_suffix(".log.1"))
            os.truncate(log, 0)


def _write(stream: Any, text: str) -> None:
    """Print, also where the terminal has gone."""
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        return
