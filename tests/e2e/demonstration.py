"""A running `obol up --demo`, as a user starts it, and a second merchant in it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from gateway.billing.accounts import Accounts, NewMerchant
from gateway.ledger import scripts
from gateway.ledger.connection import Connection
from gateway.ledger.keys import Keys
from gateway.ledger.wallets import Wallets
from gateway.settings import Settings
from gateway.store.postgres import Store
from gateway.store.secrets import Derived

REPOSITORY = Path(__file__).parents[2]
SETTINGS = {
    "PYTHONPATH": str(REPOSITORY),
    "OBOL_SHUTDOWN_IDLE_GRACE_S": "0",
    "OBOL_WEBHOOK_PRIVATE_HOSTS": '["127.0.0.1"]',
}
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30


class Hooks:
    """An endpoint for webhooks on loopback, which answers 200 and keeps what came: the bytes and the headers."""

    def __init__(self) -> None:
        self.received: list[tuple[bytes, dict[str, str]]] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append((self.rfile.read(int(self.headers["content-length"])), dict(self.headers)))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hooks"


@dataclass(frozen=True)
class Demonstration:
    """`base_url` ends in `/v1/`, as the published SDKs want it."""

    data_dir: Path
    hooks: Hooks

    @cached_property
    def base_url(self) -> str:
        return str(self._state["base_url"])

    @property
    def url(self) -> str:
        return self.base_url.removesuffix("/v1/")

    @cached_property
    def demo(self) -> dict[str, Any]:
        """What `demo.json` tells."""
        return dict(json.loads((self.data_dir / "demo.json").read_text()))

    @cached_property
    def other_merchant(self) -> NewMerchant:
        """In test mode, as the demo merchant is."""
        return self.make_merchant("other", "Other merchant")

    def make_merchant(self, account_id: str, name: str) -> NewMerchant:
        return asyncio.run(self._make_merchant(account_id, name))

    @property
    def _state(self) -> dict[str, Any]:
        return dict(json.loads((self.data_dir / "up.json").read_text()))

    async def _make_merchant(self, account_id: str, name: str) -> NewMerchant:
        state, master_key = self._state, (self.data_dir / "master.key").read_text().strip()
        settings = Settings()
        store = await Store.connect(state["postgres_url"], pool_max=1)
        ledger = Connection(state["redis_url"], scripts.load(), timeout_ms=settings.redis_timeout_ms)
        running = asyncio.ensure_future(ledger.run())
        try:
            await ledger.wait_ready(10)
            wallets = Wallets(ledger, Keys(), record_ttl_s=900, report_ttl_s=900)
            accounts = Accounts(store, wallets, Derived(master_key), shards=settings.ledger_shards)
            return await accounts.create_merchant(account_id, "test", name)
        finally:
            await ledger.close()
            running.cancel()
            await store.close()


@contextmanager
def demonstration(directory: Path) -> Iterator[Demonstration]:
    """Started when the block begins, stopped when it is left; it must end by itself, with exit code 0."""
    directory.mkdir(mode=0o711)
    data_dir, said, hooks = directory / "data", directory / "up.log", Hooks()
    Thread(target=hooks.server.serve_forever, daemon=True).start()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OBOL_")}
    options = ("--demo", "--port", "0", "--workers", "1", "--data-dir", str(data_dir))
    with said.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "up", *options],
            env=environment | SETTINGS,
            stdout=log,
            stderr=log,
        )
    try:
        _wait_ready(process, data_dir / "up.json", said)
        yield Demonstration(data_dir, hooks)
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_TIMEOUT_S) == 0, said.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        hooks.server.shutdown()
        hooks.server.server_close()


def _wait_ready(process: subprocess.Popen[bytes], up_json: Path, said: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not (up_json.exists() and json.loads(up_json.read_text())["pid"] == process.pid):
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline_s, said.read_text()
        time.sleep(0.05)


def forward_token(**fields: str) -> str:
    return b64encode(json.dumps(fields).encode()).decode()
