"""Small stand-ins for the processes of `obol up`, and an `up` that runs them: `python stand_in.py up --port 0 ...`.

`serve` answers every GET with its pid, `worker` waits, `fake-provider` only listens. Those named in STAND_IN_FAILS, or
in the file `fails` of the data directory, die at once; those in its file `lingers` do not end when they are asked once.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import asyncpg

from gateway import settings as settings_module
from gateway.errors import ConfigurationError
from gateway.local import supervisor
from gateway.local.data_dir import write_private
from gateway.local.parts import Commands
from gateway.settings import Settings


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"pid": os.getpid(), "map": os.environ.get("OBOL_UPSTREAM_MAP", "")}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        sys.stdout.write(f"{format % args}\n")


def _server(options: argparse.Namespace) -> ThreadingHTTPServer:
    if options.fd is None:
        return ThreadingHTTPServer((options.host, options.port), _Handler)
    server = ThreadingHTTPServer((options.host, options.port), _Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = socket.socket(fileno=options.fd)
    server.socket.setblocking(False)  # another process may accept from it too
    server.server_address = server.socket.getsockname()
    server.server_activate()
    return server


def _listen(options: argparse.Namespace) -> None:
    server = _server(options)
    port = server.server_address[1]
    ready = {"pid": os.getpid(), "port": port, "url": f"http://127.0.0.1:{port}"}
    write_private(options.ready_file, json.dumps(ready))
    asked = 0

    def stop(*_: object) -> None:
        nonlocal asked
        asked += 1
        if asked > 1 or not _named("lingers", options.command):
            threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    server.serve_forever()


def _named(file: str, command: str) -> bool:
    """Whether the file in the data directory names the command."""
    path = Path(os.environ.get("OBOL_DATA_DIR", "")) / file
    return path.is_file() and command in path.read_text().split()


def _wait(options: argparse.Namespace) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    write_private(options.ready_file, json.dumps({"pid": os.getpid()}))
    signal.sigwait([signal.SIGTERM])


async def _migrate(postgres_url: str) -> list[str]:
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("CREATE TABLE IF NOT EXISTS starts (at timestamptz)")
    await connection.execute("INSERT INTO starts VALUES (now())")
    await connection.close()
    return []


async def _seed(settings: Settings, data_dir: Path) -> dict[str, Any]:
    assert settings.test_mode and settings.upstream_map and settings.redis_url and data_dir.is_dir()
    return {"forward_token": "TOKEN", "secret_key": "aks_test", "connection_id": "con_test"}


def _up(options: argparse.Namespace) -> int:
    commands = Commands(
        program=(sys.executable, __file__),
        migrate=_migrate,
        seed=_seed,
        providers=lambda: [("openai", ("https://api.openai.com",)), ("mine", ("https://mine.example",))],
    )
    try:
        settings = settings_module.load(port=options.port, data_dir=str(options.data_dir), workers=options.workers)
        return supervisor.main(settings, demo=options.demo, commands=commands)
    except ConfigurationError as error:
        sys.stderr.write(f"obol: {error}\n")
        return 1


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=("up", "serve", "worker", "fake-provider"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--fd", type=int)
    parser.add_argument("--ready-file", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--demo", action="store_true")
    options = parser.parse_args()
    if options.command in os.environ.get("STAND_IN_FAILS", "").split(",") or _named("fails", options.command):
        sys.exit(f"{options.command} was told to fail")
    if options.command == "up":
        return _up(options)
    _wait(options) if options.command == "worker" else _listen(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
