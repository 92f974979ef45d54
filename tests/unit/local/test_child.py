"""A child of the supervisor: ready, restarted, stopped, killed; and what is said about it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.errors import ConfigurationError
from gateway.local.child import Child
from gateway.local.data_dir import Locked, locked
from gateway.local.process import Part, ending, tail

_SLEEPS = "import time; print('started', flush=True); time.sleep(60)"
_IGNORES = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {_SLEEPS}"


class Watch:
    """Collects what a child says."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lines: list[str] = []
        self.changes = 0

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def changed(self) -> None:
        self.changes += 1

    def child(self, program: str, **options: object) -> Child:
        def started(_pid: int) -> bool:
            return self.log("part").exists() and "started" in self.log("part").read_text()

        defaults: dict[str, object] = {"ready": started, "environment": dict(os.environ), "start_timeout_s": 10.0}
        part = Part(name="part", argv=(sys.executable, "-c", program), **(defaults | options))
        return Child(lambda: part, self.log, self.lines.append, self.changed)


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(tmp_path)


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


async def test_a_killed_child_is_started_again(watch: Watch) -> None:
    child = watch.child(_SLEEPS)
    await child.start()
    first = child.pid
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: child.pid not in (None, first))
    await child.stop()
    assert child.pid is None
    assert watch.lines[0] == f"part (pid {first}) ended with signal SIGKILL; starting it again\n    started"
    assert watch.lines[1].startswith("part is ready again (pid ")
    assert watch.changes == 2


async def test_a_child_that_dies_again_and_again_is_started_ever_more_slowly(watch: Watch) -> None:
    child = watch.child("import sys; print('started'); sys.exit(3)", ready=lambda _pid: True)
    await child.start()
    await asyncio.sleep(1.5)
    await child.stop()
    restarts = sum("ready again" in line for line in watch.lines)
    assert 2 <= restarts <= 4  # after 0.1, 0.3, 0.7 and 1.5 s


async def test_a_child_that_dies_before_it_is_ready_is_an_error_with_its_words(watch: Watch) -> None:
    with pytest.raises(ConfigurationError, match=r"part ended with exit code 3 at its start\n    no luck"):
        await watch.child("import sys; print('no luck'); sys.exit(3)").start()


async def test_a_child_that_is_never_ready_is_ended(watch: Watch) -> None:
    child = watch.child(_SLEEPS, ready=lambda _pid: False, start_timeout_s=0.3)
    with pytest.raises(ConfigurationError, match=r"not ready after 0\.3 s"):
        await child.start()
    assert child._running() is None


async def test_a_program_that_is_not_there(watch: Watch) -> None:
    part = Part(name="part", argv=("/nowhere",), ready=lambda _pid: True)
    with pytest.raises(ConfigurationError, match=r"part cannot be run: .*No such file"):
        await Child(lambda: part, watch.log, watch.lines.append, watch.changed).start()


async def test_another_attempt_asks_for_another_part(watch: Watch) -> None:
    parts = iter([Part("a", ("false",), lambda _pid: False), Part("b", ("sleep", "60"), lambda _pid: True)])
    child = Child(lambda: next(parts), watch.log, watch.lines.append, watch.changed)
    await child.start(attempts=2)
    assert child.pid is not None
    await child.stop()


async def test_a_child_that_does_not_end_in_time_is_killed(watch: Watch) -> None:
    child = watch.child(_IGNORES, stop_timeout_s=0.3)
    await child.start()
    await child.stop()
    assert watch.lines == ["part did not end within 0.3 s and is killed"]


async def test_kill_cuts_a_stop_short(watch: Watch) -> None:
    child = watch.child(_IGNORES, stop_timeout_s=60.0)
    await child.start()
    stopping = asyncio.create_task(child.stop())
    await asyncio.sleep(0.05)
    child.kill()
    async with asyncio.timeout(5):
        await stopping
    assert watch.lines == []


async def test_hurry_asks_again(watch: Watch) -> None:
    twice = "import signal; n = []; signal.signal(signal.SIGTERM, lambda *_: n.append(1) or len(n) > 1 and exit(0)); "
    child = watch.child(twice + _SLEEPS, stop_timeout_s=60.0, hurry_timeout_s=10.0)
    await child.start()
    stopping = asyncio.create_task(child.stop())
    await asyncio.sleep(0.1)
    child.hurry()
    async with asyncio.timeout(5):
        await stopping
    assert watch.lines == []


@pytest.mark.parametrize("before", [False, True])
async def test_who_does_not_hurry_is_killed(watch: Watch, before: bool) -> None:
    child = watch.child(_IGNORES, stop_timeout_s=60.0, hurry_timeout_s=0.3)
    await child.start()
    if before:
        child.hurry()
    stopping = asyncio.create_task(child.stop())
    await asyncio.sleep(0.1)
    child.hurry()
    async with asyncio.timeout(5):
        await stopping
    assert [line.partition(" within")[0] for line in watch.lines] == ["part did not end"]


async def test_an_engine_is_not_hurried(watch: Watch) -> None:
    child = watch.child(_IGNORES, stop_timeout_s=0.5)
    await child.start()
    child.hurry()
    stopping = asyncio.create_task(child.stop())
    await asyncio.sleep(0.1)
    child.hurry()
    await stopping
    assert watch.lines == ["part did not end within 0.5 s and is killed"]


async def test_a_child_inherits_the_descriptors_of_its_part(watch: Watch) -> None:
    reader, writer = os.pipe()
    child = watch.child(f"import os; os.write({writer}, b'mine'); {_SLEEPS}", descriptors=(writer,))
    await child.start()
    os.close(writer)
    assert await asyncio.to_thread(os.read, reader, 10) == b"mine"
    os.close(reader)
    await child.stop()


async def test_a_child_holds_its_lock_as_long_as_it_lives(watch: Watch, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    child = watch.child(_SLEEPS, lock=lock)
    await child.start()
    with pytest.raises(Locked), locked(lock, 0):
        pass
    await child.stop()
    with locked(lock, 0):
        pass


def test_tail_shows_the_end_of_what_is_new(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("old\n" + "".join(f"line {number}\n" for number in range(100)))
    assert tail(log, 4).splitlines()[1:] == [f"    line {number}" for number in range(80, 100)]
    assert tail(log, log.stat().st_size) == ""
    assert tail(tmp_path / "none", 0) == ""


def test_ending_in_words() -> None:
    assert [ending(code) for code in (0, 1, -9, -200)] == ["exit code 0", "exit code 1", "signal SIGKILL", "signal 200"]
