"""A certificate authority of the tests' own, and servers that present what it signed. Made by the `openssl` program."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

ALWAYS = ("20200101000000Z", "20490101000000Z")
LONG_AGO = ("20200101000000Z", "20210101000000Z")
_EC_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_CONFIG = """\
[ca]
default_ca = tests
[tests]
database = {directory}/index.txt
rand_serial = yes
unique_subject = no
new_certs_dir = {directory}
default_md = sha256
policy = any
copy_extensions = copy
[any]
commonName = optional
"""


class Authority:
    """`file` is what a client is to trust."""

    def __init__(self, directory: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("the openssl program is not installed: certificates cannot be made")
        directory.mkdir()
        self._directory = directory
        self.file = directory / "authority.pem"
        (directory / "index.txt").touch()
        (directory / "config").write_text(_CONFIG.format(directory=directory))
        self._run("req", "-x509", *_EC_KEY, "-keyout", "authority.key", "-out", self.file.name, "-subj", "/CN=Tests")

    def certified(self, *names: str, valid: tuple[str, str] = ALWAYS) -> ssl.SSLContext:
        """A server's context with a certificate for `names` that this authority signed."""
        self._run("req", *_EC_KEY, "-keyout", "a.key", "-out", "a.csr", *_subject(names))
        signed_by = ("-cert", self.file.name, "-keyfile", "authority.key")
        dates = ("-startdate", valid[0], "-enddate", valid[1])
        self._run("ca", "-batch", "-notext", "-config", "config", "-in", "a.csr", "-out", "a.pem", *signed_by, *dates)
        return self._context("a")

    def self_signed(self, *names: str) -> ssl.SSLContext:
        """A certificate for `names` that signs itself."""
        self._run("req", "-x509", *_EC_KEY, "-keyout", "b.key", "-out", "b.pem", "-days", "30", *_subject(names))
        return self._context("b")

    def _context(self, name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._directory, check=True, capture_output=True, timeout=30)


def _subject(names: tuple[str, ...]) -> tuple[str, ...]:
    alternatives = ",".join(f"DNS:{name}" for name in names)
    return "-subj", "/CN=server", "-addext", f"subjectAltName={alternatives}"


class Heard:
    """What a server was told: names asked for, handshakes done, and every byte above TLS."""

    def __init__(self) -> None:
        self.port = 0
        self.handshakes = 0
        self.names: list[str | None] = []
        self.protocols: list[str | None] = []
        self.data = b""


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


@contextlib.asynccontextmanager
async def serving(
    tls: ssl.SSLContext | None, answer: Callable[[bytes], bytes] | bytes = OK, host: str = "127.0.0.1"
) -> AsyncIterator[Heard]:
    """Answers each request, once its head and body are there, with `answer`, or what it makes of the request.

    An answer with `Connection: close` ends the connection, whatever length it declares.
    """
    heard, writers = Heard(), []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.handshakes += 1
        writers.append(writer)
        secured = writer.get_extra_info("ssl_object")
        heard.protocols.append(secured.selected_alpn_protocol() if secured else None)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = await _request(reader)
                heard.data += request
                given = answer if isinstance(answer, bytes) else answer(request)
                writer.write(given)
                await writer.drain()
                if b"\r\nConnection: close\r\n" in given:
                    break
        writer.close()

    if tls is not None:
        tls.sni_callback = lambda _socket, name, _context: heard.names.append(name)
    server = await asyncio.start_server(serve, host, 0, ssl=tls)
    heard.port = server.sockets[0].getsockname()[1]
    try:
        yield heard
    finally:
        server.close()
        for writer in writers:
            writer.close()


async def _request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    return head + await reader.readexactly(length)
