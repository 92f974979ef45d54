"""One child of the supervisor: started, kept alive, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from gateway.errors import ConfigurationError
from gateway.local.data_dir import Locked, locked
from gateway.local.engines import LOCK_WAIT_S
from gateway.local.process import Part, ending, launching, tail

_BACKOFF_MIN_S = 0.1
_BACKOFF_MAX_S = 10.0
_STEADY_S = 30.0  # who lived this long and died begins again with the shortest wait
_READY_POLL_MIN_S = 0.01
_READY_POLL_MAX_S = 0.2


class Child:
    """A child process that is started again, with a growing wait, whenever it ends by itself.

    `prepare` gives its Part and may block; it is asked at the first start only, so that a restarted child keeps its
    port and its data. `say` takes a line for the operator, `changed` is called when the pid has changed.
    """

    def __init__(
        self,
        prepare: Callable[[], Part],
        log: Callable[[str], Path],
        say: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        self._prepare = prepare
        self._log = log
        self._say = say
        self._changed = changed
        self._part: Part | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._ready = False
        self._hurried = self._killed = False
        self._patience: asyncio.Timeout | None = None
        self._log_offset = 0

    @property
    def pid(self) -> int | None:
        """The pid, None while it is not ready."""
        process = self._running()
        return process.pid if process is not None and self._ready else None

    async def start(self, attempts: int = 1) -> None:
        """Start it and return when it is ready; from then on it is kept alive.

        Raise ConfigurationError with its last words if it is not ready in time. More than one attempt makes sense
        where `prepare` chooses something that another process may take first, as a port.
        """
        for attempt in range(1, attempts + 1):
            self._part = part = await asyncio.to_thread(self._prepare)
            try:
                await self._launch(part)
            except ConfigurationError:
                if attempt == attempts:
                    raise
            else:
                self._keeper = asyncio.create_task(self._keep(part), name=f"keep {part.name}")
                return

    async def stop(self) -> None:
        """Ask it to end, wait as long as its Part allows, then end it."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        await self._end()

    def hurry(self) -> None:
        """Have a `stop`, also one that waits already, ask for haste and wait no longer than that may take."""
        self._hurried = True
        process, part, patience = self._running(), self._part, self._patience
        if process is None or part is None or part.hurry_timeout_s is None or patience is None or patience.expired():
            return
        process.send_signal(part.stop_signal)
        patience.reschedule(asyncio.get_running_loop().time() + part.hurry_timeout_s)

    def kill(self) -> None:
        """End it now and for good, and let a `stop` that waits return."""
        self._killed = True
        if self._keeper is not None:
            self._keeper.cancel()
        process = self._running()
        if process is not None and self._part is not None:
            process.send_signal(self._part.kill_signal)

    def _running(self) -> asyncio.subprocess.Process | None:
        return self._process if self._process is not None and self._process.returncode is None else None

    async def _launch(self, part: Part) -> None:
        log = self._log(part.name)
        offset = self._log_offset = log.stat().st_size if log.exists() else 0
        if part.lock is not None:
            await asyncio.to_thread(_wait_unlocked, part)
        self._ready = False
        try:
            with launching(part, log) as options:
                self._process = await asyncio.create_subprocess_exec(*part.argv, **options)
            async with asyncio.timeout(part.start_timeout_s):
                await self._until_ready(part, self._process, log, offset)
        except TimeoutError:
            await self._end()
            words = tail(log, offset)
            raise ConfigurationError(f"{part.name} is not ready after {part.start_timeout_s:g} s{words}") from None
        except (OSError, Locked) as error:
            await self._end()
            raise ConfigurationError(f"{part.name} cannot be run: {error}") from None
        except ConfigurationError:
            await self._end()
            raise
        self._ready = True

    async def _until_ready(self, part: Part, process: asyncio.subprocess.Process, log: Path, offset: int) -> None:
        pause_s = _READY_POLL_MIN_S
        while not await asyncio.to_thread(part.ready, process.pid):
            if process.returncode is not None:
                how = ending(process.returncode)
                raise ConfigurationError(f"{part.name} ended with {how} at its start{tail(log, offset)}")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _READY_POLL_MAX_S)

    async def _keep(self, part: Part) -> None:
        backoff_s = _BACKOFF_MIN_S
        while self._process is not None:
            since_s, pid, code = time.monotonic(), self._process.pid, await self._process.wait()
            self._changed()
            steady = time.monotonic() - since_s > _STEADY_S
            words = "" if steady else tail(self._log(part.name), self._log_offset)
            self._say(f"{part.name} (pid {pid}) ended with {ending(code)}; starting it again{words}")
            backoff_s = _BACKOFF_MIN_S if steady else backoff_s
            backoff_s = await self._restart(part, backoff_s)

    async def _restart(self, part: Part, backoff_s: float) -> float:
        """Try until it is ready again; return the wait before the next try, should it end again."""
        while True:
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _BACKOFF_MAX_S)
            try:
                await self._launch(part)
            except ConfigurationError as error:
                self._say(f"{part.name} does not start, next try in {backoff_s:g} s: {error}")
                continue
            self._changed()
            self._say(f"{part.name} is ready again (pid {self.pid})")
            return backoff_s

    async def _end(self) -> None:
        process, part = self._running(), self._part
        if process is None or part is None:
            return
        since_s = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(part.kill_signal if self._killed else part.stop_signal)
            try:
                async with asyncio.timeout(self._stop_timeout_s(part)) as self._patience:
                    await process.wait()
            except TimeoutError:
                self._say(f"{part.name} did not end within {time.monotonic() - since_s:.1f} s and is killed")
                process.send_signal(part.kill_signal)
            finally:
                self._patience = None
        await process.wait()

    def _stop_timeout_s(self, part: Part) -> float:
        return part.hurry_timeout_s if self._hurried and part.hurry_timeout_s is not None else part.stop_timeout_s


def _wait_unlocked(part: Part) -> None:
    """Wait until what a dead engine forked has gone as well."""
    assert part.lock is not None
    try:
        with locked(part.lock, LOCK_WAIT_S):
            return
    except Locked:
        raise ConfigurationError(f"another process still uses the data of {part.name} ({part.lock})") from None
