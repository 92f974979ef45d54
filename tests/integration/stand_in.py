"""Small stand-ins for the processes of `obol up`, and an `up` that runs them: `python stand_in.py up --port 0 ...`.

`serve` answers every GET with its pid, `worker` waits, `fake-provider` only listens. Those named in STAND_IN_FAILS
die at once.
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


class _Server(ThreadingHTTPServer):
    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()


def _listen(options: argparse.Namespace) -> None:
    server = _Server((options.host, options.port), _Handler)
    port = server.server_address[1]
    ready = {"pid": os.getpid(), "port": port, "url": f"http://127.0.0.1:{port}"}
    write_private(options.ready_file, json.dumps(ready))
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()


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
    parser.add_argument("--ready-file", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--demo", action="store_true")
    options = parser.parse_args()
    if options.command in os.environ.get("STAND_IN_FAILS", "").split(","):
        sys.exit(f"{options.command} was told to fail")
    if options.command == "up":
        return _up(options)
    _wait(options) if options.command == "worker" else _listen(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
