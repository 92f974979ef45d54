"""`obol up` with real engines and stand-in processes: healing, refusing, rolling, stopping, leaving nobody behind."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis
from scratch import scratch_directory

from gateway.local.data_dir import DataDir
from gateway.local.parts import environment
from gateway.settings import Settings

REPOSITORY = Path(__file__).parents[2]
STAND_IN = Path(__file__).with_name("stand_in.py")
START_TIMEOUT_S = 60


class Up:
    """One `obol up` of the stand-ins."""

    def __init__(self, data_dir: Path, *options: str, environ: dict[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self._output: tuple[str, str] | None = None
        own = {name: value for name, value in os.environ.items() if not name.startswith("OBOL_")}
        self.process = subprocess.Popen(
            [sys.executable, str(STAND_IN), "up", "--data-dir", str(data_dir), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=own | {"PYTHONPATH": str(REPOSITORY)} | (environ or {}),
            start_new_session=True,
        )

    @property
    def state(self) -> dict[str, Any]:
        return dict(json.loads((self.data_dir / "up.json").read_text()))

    def ready(self) -> Up:
        eventually(self._is_ready, START_TIMEOUT_S)
        return self

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.process.communicate()
        return (self.data_dir / "up.json").exists() and self.state["pid"] == self.process.pid

    def pids(self) -> list[int]:
        """Everybody that the supervisor started, by the kernel's account."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(word) for word in children.split()]

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        if number and self.process.poll() is None:
            self.process.send_signal(number)
        if self._output is None:
            self._output = self.process.communicate(timeout=60)
        return self.process.returncode, *self._output


def eventually(holds: Callable[[], bool], within_s: float = 20) -> None:
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s, "it did not come to pass"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def answering_pid(state: dict[str, Any]) -> int:
    with urllib.request.urlopen(state["base_url"] + "x", timeout=5) as response:
        return int(json.loads(response.read())["pid"])


def rows(url: str, table: str) -> int:
    async def count() -> int:
        connection = await asyncpg.connect(url, timeout=10)
        try:
            return int(await connection.fetchval(f"SELECT count(*) FROM {table}"))
        finally:
            await connection.close()

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(count())


@pytest.fixture
def data_dir() -> Iterator[Path]:
    parent = scratch_directory("obol-test-")
    yield parent / "data"
    shutil.rmtree(parent)


@pytest.fixture
def up(data_dir: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(*options: str, environ: dict[str, str] | None = None, directory: Path = data_dir) -> Up:
        started.append(Up(directory, *options, environ=environ))
        return started[-1]

    yield start
    for one in started:
        pids = one.pids() if one.process.poll() is None else []
        one.stop()
        eventually(lambda pids=pids: not any(map(alive, pids)))


@pytest.fixture
def external(valkey: str, postgres: str) -> dict[str, str]:
    """Engines of somebody else."""
    return {"OBOL_REDIS_URL": valkey, "OBOL_POSTGRES_URL": postgres}


def test_it_starts_tells_the_truth_stops_and_keeps_its_data(up: Callable[..., Up], data_dir: Path) -> None:
    first = up().ready()
    state = first.state
    assert stat.S_IMODE((data_dir / "up.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((data_dir / "env.json").stat().st_mode) == 0o600
    assert sorted(first.pids()) == sorted(
        [*state["workers"], state["worker_pid"], state["valkey_pid"], state["postgres_pid"]]
    )
    assert answering_pid(state) in state["workers"]
    assert len(state["workers"]) == 2
    redis.Redis.from_url(state["redis_url"]).set("kept", "yes")
    pids = first.pids()
    code, out, _ = first.stop()
    assert code == 0
    assert state["base_url"] in out
    assert not any(map(alive, pids))
    assert not (data_dir / "up.json").exists()
    again = up().ready().state
    assert (again["redis_url"], again["postgres_url"]) == (state["redis_url"], state["postgres_url"])
    assert redis.Redis.from_url(again["redis_url"]).get("kept") == b"yes"
    assert rows(again["postgres_url"], "starts") == 2


def test_killing_the_supervisor_leaves_nobody_and_the_next_start_works(up: Callable[..., Up], data_dir: Path) -> None:
    first = up("--demo").ready()
    pids, url = first.pids(), first.state["redis_url"]
    assert len(pids) == 6
    redis.Redis.from_url(url).set("kept", "yes")
    assert DataDir(data_dir).running_environment()["OBOL_REDIS_URL"] == url
    first.process.kill()
    first.process.wait()
    eventually(lambda: not any(map(alive, pids)))
    assert (data_dir / "up.json").exists()
    assert DataDir(data_dir).running_environment() == {}
    second = up().ready()
    assert redis.Redis.from_url(second.state["redis_url"]).get("kept") == b"yes"


def test_whoever_is_killed_comes_back(up: Callable[..., Up]) -> None:
    one = up("--demo").ready()
    before = one.state
    redis.Redis.from_url(before["redis_url"]).set("kept", "yes")
    victims = ("valkey_pid", "postgres_pid", "worker_pid")
    for name in victims:
        os.kill(before[name], signal.SIGKILL)
    os.kill(before["workers"][0], signal.SIGKILL)

    def healed() -> bool:
        now = one.state
        pids = [now[name] for name in victims] + now["workers"]
        fresh = len(now["workers"]) == 2 and before["workers"][0] not in now["workers"]
        return fresh and all(pid and alive(pid) for pid in pids) and all(now[name] != before[name] for name in victims)

    eventually(healed)
    after = one.state
    assert before["workers"][1] in after["workers"]
    for name in ("base_url", "redis_url", "postgres_url", "fake_provider_url"):
        assert after[name] == before[name]
    assert redis.Redis.from_url(after["redis_url"]).get("kept") == b"yes"
    assert rows(after["postgres_url"], "starts") == 1
    assert answering_pid(after) in after["workers"]


def test_a_second_up_on_one_data_directory_is_refused(up: Callable[..., Up], external: dict[str, str]) -> None:
    first = up(environ=external).ready()
    code, _, err = up(environ=external).stop(0)
    assert code == 1
    assert f"is in use by another obol up (pid {first.process.pid}" in err
    assert len(err.splitlines()) == 1
    assert answering_pid(first.state) in first.state["workers"]


def test_external_engines_are_left_alone(up: Callable[..., Up], external: dict[str, str], data_dir: Path) -> None:
    one = up(environ=external).ready()
    assert (one.state["valkey_pid"], one.state["postgres_pid"], one.state["fake_provider_url"]) == (None, None, None)
    assert one.state["redis_url"] == external["OBOL_REDIS_URL"]
    assert one.stop()[0] == 0
    assert not (data_dir / "valkey").exists()
    assert not (data_dir / "postgres").exists()


@pytest.mark.parametrize("shared", [False, True])
def test_a_taken_port_is_one_clear_line(up: Callable[..., Up], external: dict[str, str], shared: bool) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=shared) as taken:
        code, _, err = up("--port", str(taken.getsockname()[1]), environ=external).stop(0)
    assert code == 1
    assert "is taken by another program" in err
    assert len(err.splitlines()) == 1


def test_an_unusable_data_directory_is_one_clear_line(up: Callable[..., Up], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = up(directory=tmp_path / "file" / "data").stop(0)
    assert code == 1
    assert "is not usable: Not a directory" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["serve", "worker"])
def test_the_last_words_of_a_child_that_dies_at_once_are_shown(
    up: Callable[..., Up], external: dict[str, str], name: str
) -> None:
    one = up(environ=external | {"STAND_IN_FAILS": name})
    code, _, err = one.stop(0)
    assert code == 1
    assert "ended with exit code 1 at its start" in err
    assert f"{name} was told to fail" in err
    assert "Traceback" not in err


def test_an_unreachable_database_is_a_clear_line(up: Callable[..., Up], valkey: str) -> None:
    environ = {"OBOL_REDIS_URL": valkey, "OBOL_POSTGRES_URL": "postgresql://obol:x@127.0.0.1:1/obol"}
    code, _, err = up(environ=environ).stop(0)
    assert code == 1
    assert err.startswith("obol: the database cannot be migrated:")
    assert "Traceback" not in err


def test_a_hangup_replaces_gateways_and_worker_without_a_gap(up: Callable[..., Up], external: dict[str, str]) -> None:
    one = up(environ=external).ready()
    before = one.state
    one.process.send_signal(signal.SIGHUP)
    old = {*before["workers"], before["worker_pid"]}

    def rolled() -> bool:
        now = one.state
        assert len(now["workers"]) == 2
        return not old & {*now["workers"], now["worker_pid"]}

    eventually(rolled)
    eventually(lambda: not any(map(alive, old)))
    assert answering_pid(one.state) in one.state["workers"]
    code, _, err = one.stop()
    assert code == 0
    assert "have been replaced" in err
    assert "starting it again" not in err


@pytest.mark.slow
@pytest.mark.parametrize(("name", "replaced"), [("serve", True), ("worker", False)])
def test_a_successor_that_does_not_start_leaves_the_old_one_in_place(
    up: Callable[..., Up], external: dict[str, str], data_dir: Path, name: str, replaced: bool
) -> None:
    one = up(environ=external).ready()
    before = one.state
    (data_dir / "fails").write_text(name)
    one.process.send_signal(signal.SIGHUP)
    eventually(lambda: "was told to fail" in (data_dir / "logs" / f"{log_of(name)}.log").read_text())
    eventually(lambda: len(one.pids()) == 3 and one.state["draining"] == [])
    after = one.state
    assert after["workers"] == before["workers"]
    assert (after["worker_pid"] != before["worker_pid"]) is replaced, "it comes first"
    assert sorted(one.pids()) == sorted([*after["workers"], after["worker_pid"]])
    (data_dir / "fails").unlink()
    one.process.send_signal(signal.SIGHUP)
    eventually(lambda: not {*after["workers"], after["worker_pid"]} & {*one.state["workers"], one.state["worker_pid"]})
    _, _, err = one.stop()
    assert "the roll stops here, those not yet replaced go on" in err
    assert f"{name} was told to fail" in err


def log_of(name: str) -> str:
    return {"serve": "gateway-1"}.get(name, name)


def test_who_connects_while_a_gateway_is_away_is_served_by_its_successor(
    up: Callable[..., Up], external: dict[str, str]
) -> None:
    one = up("--workers", "1", environ=external).ready()
    (old,) = one.state["workers"]
    os.kill(old, signal.SIGKILL)
    eventually(lambda: not alive(old))
    served = answering_pid(one.state)  # nobody listens but the supervisor's descriptor
    assert served != old
    eventually(lambda: one.state["workers"] == [served])


@pytest.mark.slow
def test_a_roll_asked_for_during_a_roll_follows_it_and_old_processes_may_overlap(
    up: Callable[..., Up], external: dict[str, str], data_dir: Path
) -> None:
    one = up("--workers", "1", environ=external | {"OBOL_ROLL_WAIT_S": "0"}).ready()
    (data_dir / "lingers").write_text("serve")  # asked once, they go on with their calls
    seen = {one.state["workers"][0]}
    one.process.send_signal(signal.SIGHUP)
    time.sleep(0.1)
    one.process.send_signal(signal.SIGHUP)
    eventually(lambda: not seen & set(one.state["workers"]) and len(one.state["draining"]) >= 2)
    state = one.state
    assert all(map(alive, [*state["draining"], *state["workers"]]))
    assert seen <= set(state["draining"])
    assert answering_pid(state) in (*state["workers"], *state["draining"])
    since_s = time.monotonic()
    one.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert one.process.poll() is None, "it did not wait for them"
    code, _, err = one.stop()  # the second signal: they are asked again
    assert code == 0
    assert time.monotonic() - since_s < 4, "they were killed, not asked"
    assert "is killed" not in err


@pytest.mark.slow
def test_a_second_signal_kills_who_does_not_end(up: Callable[..., Up]) -> None:
    one = up().ready()
    stuck = one.state["workers"][0]
    os.kill(stuck, signal.SIGSTOP)
    one.process.send_signal(signal.SIGINT)
    eventually(lambda: len(one.pids()) == 4)  # the stuck gateway, and those who wait for their turn
    pids = one.pids()
    code, _, err = one.stop(signal.SIGINT)
    assert code == 0
    assert not any(map(alive, pids))
    assert "starting it again" not in err


def test_the_demo_sends_everything_without_a_key_to_the_fake(up: Callable[..., Up], external: dict[str, str]) -> None:
    one = up("--demo", environ=external | {"OBOL_PROVIDER_KEY_MINE": "key"}).ready()
    fake_url = one.state["fake_provider_url"]
    with urllib.request.urlopen(one.state["base_url"], timeout=5) as response:
        assert json.loads(json.loads(response.read())["map"]) == {"https://api.openai.com": fake_url}
    code, out, _ = one.stop()
    assert code == 0
    assert "forward?u=https://api.openai.com/v1/chat/completions" in out
    assert "Bearer TOKEN" in out
    assert "connections/con_test" in out


def test_the_children_get_one_environment(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    data.create()
    first = environment(Settings(), data, 8080, "redis://r", "postgresql://p")
    assert first == environment(Settings(), data, 8080, "redis://r", "postgresql://p")
    assert len(bytes.fromhex(first["OBOL_MASTER_KEY"])) == 32
    assert stat.S_IMODE(data.master_key_file.stat().st_mode) == 0o600
    assert first["PROMETHEUS_MULTIPROC_DIR"] == str(tmp_path / "data" / "metrics")
    assert environment(Settings(master_key="given"), data, 1, "", "")["OBOL_MASTER_KEY"] == "given"
