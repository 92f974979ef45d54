"""The merchant's page: a web server on a port of its own."""

from __future__ import annotations

import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from playwright.sync_api import FrameLocator

TYPES = {"js": "text/javascript", "html": "text/html"}


class Shop:
    """`files`: what it serves, by path."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, shop: Shop, *arguments: Any) -> None:
        self._shop = shop
        super().__init__(*arguments)

    def do_GET(self) -> None:
        text = self._shop.files.get(self.path)
        body = (text or "").encode()
        self.send_response(200 if text is not None else 404)
        self.send_header("Content-Type", TYPES.get(self.path.rpartition(".")[2], TYPES["html"]) + "; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def prove(inside: FrameLocator, phone: str) -> None:
    inside.get_by_label("Mobile phone number").fill(phone)
    inside.get_by_role("button", name="Send the code").click()
    inside.get_by_label("Code", exact=True).fill("000000")
    inside.get_by_role("button", name="Continue").click()


def introduce(inside: FrameLocator) -> None:
    inside.get_by_label("Email", exact=True).fill("ada@example.com")
    inside.get_by_label("First name").fill("Ada")
    inside.get_by_label("Last name").fill("Lovelace")
    inside.get_by_role("button", name="Continue").click()


def add_card(inside: FrameLocator) -> None:
    inside.get_by_label("Card number").fill("4242 4242 4242 4242")
    inside.get_by_label("Expiry").fill("12/40")
    inside.get_by_label("Security code").fill("123")
    inside.get_by_role("button", name="Save the card").click()
