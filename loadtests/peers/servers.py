"""Starts the servers of a measurement as child processes and stops each one that it started."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from loadtests import procfs
from loadtests.peers.ports import answers, free_port

START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 15.0
NGINX_CONF = Path(__file__).with_name("nginx.conf")


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its origin, the process that serves, and where it takes chat completions."""

    name: str
    url: str
    pid: int
    path: str = "/v1/chat/completions"
    key: str = ""
    companions: tuple[int, ...] = ()
    """Processes that share its work: for Obol the ledger, the background worker, PostgreSQL."""


def pinned(cores: Sequence[int]) -> list[str]:
    """A command's prefix that keeps the process and its children on `cores`."""
    taskset = shutil.which("taskset")
    return [taskset, "-c", ",".join(map(str, cores))] if cores and taskset else []


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    if process.poll() is None:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


@contextlib.contextmanager
def _announced(name: str, module: Sequence[str], cores: Sequence[int]) -> Iterator[Server]:
    """A Python server that prints {"url", "pid"} when it listens. Raise SubprocessError when it does not."""
    process = subprocess.Popen([*pinned(cores), sys.executable, "-m", *module], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
        line = process.stdout.readline() if ready else b""
        if not line:
            raise subprocess.SubprocessError(f"{name} did not start")
        said = json.loads(line)
        yield Server(name, said["url"], said["pid"])
    finally:
        stop(process)


def fast_provider(port: int = 0, cores: Sequence[int] = ()) -> contextlib.AbstractContextManager[Server]:
    return _announced("fast provider", ["loadtests.provider", "--port", str(port)], cores)


def bare_aiohttp(upstream: str, cores: Sequence[int] = ()) -> contextlib.AbstractContextManager[Server]:
    return _announced("bare aiohttp", ["loadtests.peers.bare", "--upstream", upstream], cores)


def nginx_binary() -> str | None:
    """Debian has it in /usr/sbin, which an ordinary user's PATH leaves out."""
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def nginx(upstream: str, cores: Sequence[int] = ()) -> Iterator[Server]:
    """nginx as a plain reverse proxy with one worker. Raise SubprocessError when it does not start."""
    binary, port = nginx_binary(), free_port()
    assert binary is not None
    with tempfile.TemporaryDirectory(prefix="obol-bench-nginx-") as directory:
        settings = {"directory": directory, "port": port, "upstream": upstream.removeprefix("http://")}
        settings["user"] = "user root;" if os.geteuid() == 0 else ""
        config = Path(directory) / "nginx.conf"
        config.write_text(Template(NGINX_CONF.read_text(encoding="utf-8")).substitute(settings), encoding="utf-8")
        command = [*pinned(cores), binary, "-e", f"{directory}/error.log", "-c", str(config), "-p", directory]
        process = subprocess.Popen(command)
        try:
            yield Server("nginx", f"http://127.0.0.1:{port}", _worker_of(process, port))
        finally:
            stop(process)


def _worker_of(process: subprocess.Popen[bytes], port: int) -> int:
    """The process that serves, once it does. The port is open before there is a worker."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        workers = [pid for pid in procfs.descendants(process.pid) if pid != process.pid]
        if workers and answers(port):
            return workers[0]
        if process.poll() is not None or time.monotonic() > deadline:
            raise subprocess.SubprocessError("nginx did not start")
        time.sleep(0.02)
