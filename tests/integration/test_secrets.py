"""No secret leaks: canaries through every error path of a real `obol up`, then a search of what it wrote and said."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import asyncpg
import msgspec
import pytest
import pytest_asyncio
import redis.asyncio
from aiohttp import web
from certificates import serving
from running import RunningGateway
from scratch import scratch_directory
from tests_support import CHAT, chat
from yarl import URL

from gateway import log, providers

REPOSITORY = Path(__file__).parents[2]
START_TIMEOUT_S, STOP_TIMEOUT_S = 90, 60
MANAGED = "sk-canary-managed-key-0123456789"
OWN = "sk-canary-callers-own-key-012345"
MASTER = "canary-master-key-" + "0123456789abcdef" * 3
STRANGE = "canary-strange-credential-0123456789"
GEMINI = "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:generateContent"
NOWHERE = "https://api.x.ai/v1/chat/completions"
IN_REQUESTS = ("secret_key", "forward_token", "connection_secret", "product_secret", "prepaid_forward_token")
OK_WITH_USAGE = b'{"id":"x","model":"gpt-4o-mini","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}}'


def spellings(secret: str) -> set[bytes]:
    """`secret` as itself, percent-encoded, in hexadecimal, and within base64 wherever it begins."""
    raw = secret.encode()
    encoded = {b64encode(b"x" * before + raw)[4 if before else 0 : -4] for before in range(3)}
    return {raw, quote(secret, safe="").encode(), raw.hex().encode(), *encoded}


class Canaries:
    """The secrets of one installation, and a search for any of them."""

    def __init__(self, **secrets: str) -> None:
        self._spellings = {name: spellings(secret) for name, secret in secrets.items()}

    def found(self, where: str, data: bytes, *, allowed: tuple[str, ...] = ()) -> list[str]:
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return [
            f"{name} in {where}"
            for name, spelled in self._spellings.items()
            if name not in allowed and any(text in data for text in spelled)
        ]


def provider_answer(request: bytes) -> bytes:
    """A provider that does as the header X-Do says: a status whose body quotes the whole request, or worse."""
    head = request.partition(b"\r\n\r\n")[0]
    lines = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    do = lines.get(b"X-Do", b"200")
    if do == b"cut":
        return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1000\r\n\r\nhalf of it"
    if do == b"garbage":
        return b"what? " + head + b"\r\n\r\n"
    body = OK_WITH_USAGE if do == b"200" else b'{"error": %b}' % json.dumps(head.decode()).encode()
    return b"HTTP/1.1 %b Said\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (do, len(body), body)


async def slow(request: web.Request) -> web.StreamResponse:
    """A stream that outlives the gateway's patience."""
    answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await answer.prepare(request)
    with contextlib.suppress(ConnectionError, asyncio.CancelledError):
        for _ in range(600):
            await answer.write(b'data: {"id":"x","choices":[{"delta":{"content":"word "}}]}\n\n')
            await asyncio.sleep(0.1)
    return answer


class Installation:
    """One `obol up --demo` with a provider that repeats what it is told."""

    def __init__(self, directory: Path, upstream_map: dict[str, str]) -> None:
        self.directory = directory
        environ = {name: value for name, value in os.environ.items() if not name.startswith("OBOL_")} | {
            "OBOL_LOG_LEVEL": "debug",
            "PYTHONASYNCIODEBUG": "1",
            "OBOL_MASTER_KEY": MASTER,
            "OBOL_PROVIDER_KEY_OPENAI": MANAGED,
            "OBOL_TEST_MODE": "1",
            "OBOL_UPSTREAM_MAP": json.dumps(upstream_map),
            "OBOL_SHUTDOWN_DRAIN_S": "1",
            "OBOL_MAX_REQUEST_BODY_BYTES": "100000",
            "PYTHONPATH": str(REPOSITORY),
        }
        options = ("--demo", "--workers", "1", "--port", "0", "--data-dir", str(directory))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gateway", "up", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
            start_new_session=True,
        )
        self.output = b""

    async def ready(self) -> None:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not (self.directory / "up.json").exists():
                assert self.process.poll() is None, self.process.communicate()
                await asyncio.sleep(0.05)
        self.state: dict[str, Any] = json.loads((self.directory / "up.json").read_text())
        self.demo: dict[str, str] = json.loads((self.directory / "demo.json").read_text())
        self.url = self.state["base_url"].removesuffix("/v1/")
        self.canaries = Canaries(
            **{name: self.demo[name] for name in IN_REQUESTS},
            managed=MANAGED,
            own=OWN,
            master=MASTER,
            strange=STRANGE,
            redis_password=str(URL(self.state["redis_url"]).password),
            postgres_password=str(URL(self.state["postgres_url"]).password),
        )

    async def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            ended = await asyncio.to_thread(self.process.communicate, timeout=STOP_TIMEOUT_S)
            self.output = b"".join(ended)


@pytest.fixture
def directory() -> Iterator[Path]:
    parent = scratch_directory("obol-test-")
    yield parent / "data"
    shutil.rmtree(parent)


@pytest_asyncio.fixture
async def installation(directory: Path) -> AsyncIterator[Installation]:
    streaming = web.Application()
    streaming.router.add_route("*", "/{path:.*}", slow)
    runner = web.AppRunner(streaming, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with serving(None, provider_answer) as provider:
        upstream = {origin: f"http://127.0.0.1:{provider.port}" for row in providers.load() for origin in row.origins}
        upstream["https://api.mistral.ai"] = f"http://127.0.0.1:{runner.addresses[0][1]}"
        upstream["https://api.x.ai"] = f"http://127.0.0.1:{_closed_port()}"
        running = Installation(directory, upstream)
        try:
            await running.ready()
            yield running
        finally:
            await running.stop()
            await runner.cleanup()


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def token(**fields: str) -> str:
    return b64encode(json.dumps(fields).encode()).decode()


class Driver:
    """Makes calls, and looks into every answer."""

    def __init__(self, up: Installation, session: aiohttp.ClientSession) -> None:
        self.up = up
        self.session = session
        self.statuses: dict[str, int] = {}
        self.leaks: list[str] = []

    async def ask(self, what: str, method: str, path: str, *, allowed: tuple[str, ...] = (), **arguments: Any) -> None:
        """`allowed`: what the answer may hold, because it is the provider's and quotes the caller's own key."""
        url = URL(self.up.url + path, encoded=True)
        async with self.session.request(method, url, **arguments) as answer:
            body = b""
            with contextlib.suppress(aiohttp.ClientPayloadError):
                body = await answer.read()
            told = repr(answer.raw_headers).encode() + b"\n" + body
        self.statuses[what] = answer.status
        self.leaks += self.up.canaries.found(f"the answer to: {what}", told, allowed=allowed)

    async def call(self, what: str, credential: str, target: str = CHAT, do: str = "200", **more: Any) -> None:
        headers = {"Authorization": f"Bearer {credential}", "X-Do": do, **more.pop("headers", {})}
        arguments = {"json": chat(), **more}
        await self.ask(what, arguments.pop("method", "POST"), f"/v1/forward?u={target}", headers=headers, **arguments)

    async def raw(self, what: str, data: bytes) -> None:
        """Bytes upon which the gateway closes the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", URL(self.up.url).port)
        writer.write(data)
        told = await asyncio.wait_for(reader.read(), 30)
        writer.close()
        self.statuses[what] = int(told[9:12]) if told[:5] == b"HTTP/" else 0
        self.leaks += self.up.canaries.found(f"the answer to: {what}", told)


async def drive(driver: Driver) -> None:
    demo = driver.up.demo
    good, secret = demo["forward_token"], demo["secret_key"]
    of = {"secret_key": secret, "connection_secret": demo["connection_secret"]}
    own = token(**of, product_secret=demo["product_secret"], provider_key=OWN)
    await driver.call("a call", good)
    await driver.call("a call with the caller's own key", own)
    for do in ("401", "403", "404", "429", "500", "503"):
        await driver.call(f"the provider says {do}", good, do=do)
        await driver.call(f"the provider says {do} to the caller's own key", own, do=do, allowed=("own",))
    for do in ("cut", "garbage"):
        await driver.call(f"the provider's answer is {do}", good, do=do)
    await driver.call("the provider is not there", own, NOWHERE)
    await driver.call("no key for a provider", good, "https://api.acme.dev/x")
    await driver.call("a key in a target that is not served", good, f"https://api.acme.dev/x%3Fkey={STRANGE}")
    await driver.call("a password in the target", good, f"https://user:{STRANGE}@api.openai.com/v1/x")
    await driver.call("the credential in the target too", good, f"{CHAT}?token={good}")
    await _credentials(driver, of)
    await _refusals(driver, good)
    await _rest(driver, secret)
    for what, line in (
        ("a bad header", b"Authorization: Bearer %b\x00\r\n" % good.encode()),
        ("a header without a name", b": %b\r\n" % good.encode()),
        ("a folded header", b"Authorization: Bearer\r\n %b\r\n" % good.encode()),
    ):
        await driver.raw(what, b"POST /v1/forward?u=%b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (CHAT.encode(), line))
    await driver.raw("a line that is no request", good.encode() + b" " + OWN.encode() + b"\r\n\r\n")


async def _credentials(driver: Driver, of: dict[str, str]) -> None:
    """401 and 404 in every form that a credential has, and in every place where it may stand."""
    meter = {"product_secret": driver.up.demo["product_secret"]}
    for what, credential in {
        "an unknown secret key": f"aks_live_{STRANGE}",
        "an unknown spend key": f"lava_sk_{STRANGE}",
        "no base64": STRANGE,
        "no JSON": b64encode(STRANGE.encode()).decode(),
        "a wrong type": b64encode(json.dumps({"secret_key": {"x": STRANGE}}).encode()).decode(),
        "an unknown customer": token(secret_key=of["secret_key"], connection_secret=f"cons_test_{STRANGE}", **meter),
        "an unknown meter": token(**of, product_secret=f"ps_test_{STRANGE}"),
        "two customers": token(**of, **meter, connection_id=STRANGE),
        "a key with a line break": token(**of, **meter, provider_key=OWN + "\r\nx: y"),
        "dotted": f"aks_live_{STRANGE}.{of['connection_secret']}.{meter['product_secret']}.{OWN}",
    }.items():
        await driver.call(what, credential)
    await driver.call("a scheme that is no bearer", "x", headers={"Authorization": f"Basic {STRANGE}"})
    good = driver.up.demo["forward_token"]
    key = quote(good, safe="")
    body = {"contents": [{"parts": [{"text": "hi"}]}]}
    for what, query, status in (
        ("a key in the query", key, "200"),
        ("a bad key in the query", STRANGE, "200"),
        ("a key in the query, and an error", key, "401"),
    ):
        path = f"/v1/forward?u={GEMINI}?key={query}"
        await driver.ask(what, "POST", path, json=body, headers={"X-Do": status})
    for header in ("x-api-key", "x-goog-api-key", "xi-api-key", "api-key"):
        bad = {header: STRANGE, "X-Do": "200"}
        await driver.ask(f"a bad key in {header}", "POST", f"/v1/forward?u={CHAT}", json=chat(), headers=bad)


async def _refusals(driver: Driver, good: str) -> None:
    await driver.call(
        "no credit", driver.up.demo["prepaid_forward_token"], json=chat(model="gpt-4o-mini", max_tokens=10**7)
    )
    once = {"Idempotency-Key": "one"}
    await driver.call("an idempotency key", good, headers=once)
    await driver.call("the same once more", good, headers=once)
    await driver.call("the same for another call", good, headers=once, json=chat("other"))
    large = f"Host: x\r\nAuthorization: Bearer {good}\r\nContent-Length: 200000\r\n\r\n"
    await driver.raw("too large", f"POST /v1/forward?u={CHAT} HTTP/1.1\r\n{large}".encode())
    await driver.call("no JSON in the body", good, json=None, data=STRANGE.encode())
    await driver.call("bad metadata", good, headers={"X-Lava-Metadata": STRANGE})
    await driver.call("a method that is not passed on", good, "https://api.openai.com/v1/models", method="TRACE")


async def _rest(driver: Driver, secret: str) -> None:
    demo, auth = driver.up.demo, {"Authorization": f"Bearer {secret}"}
    bad = {"Authorization": f"Bearer aks_test_{STRANGE}"}
    report = {"request_id": "r1", "connection_secret": demo["connection_secret"], "product_secret": STRANGE}
    own_words = ("strange",)  # what a caller puts into a path is told to the caller again
    await driver.ask("REST, 401", "GET", "/v1/requests", headers=bad)
    await driver.ask("REST, 404", "GET", f"/v1/connections/{STRANGE}", headers=auth, allowed=own_words)
    await driver.ask("REST, no route", "GET", f"/v1/nothing/{STRANGE}", headers=auth, allowed=own_words)
    await driver.ask("REST, 405", "PUT", "/v1/requests", headers=auth)
    await driver.ask("REST, 400", "POST", "/v1/requests", headers=auth, json=report, allowed=own_words)
    await driver.ask("REST, no JSON", "POST", "/v1/meters", headers=auth, data=b"{" + STRANGE.encode())
    wanted = {"name": "Other", "rate_type": "fixed", "tier_type": "tokens_1m", "tiers": [{"start": 0, "rate": "1"}]}
    created = ("meter",)
    await driver.ask("REST, a meter", "POST", "/v1/meters", headers=auth, json=wanted, allowed=created)
    path = f"/v1/meters/{demo['product_secret']}"
    await driver.ask("REST, a meter by its secret", "GET", path, headers=auth, allowed=("product_secret",))
    await driver.ask("REST, requests", "GET", "/v1/requests?limit=100", headers=auth)


@pytest.mark.slow
async def test_no_secret_leaks(installation: Installation) -> None:
    up = installation
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60), auto_decompress=False) as session:
        driver = Driver(up, session)
        await drive(driver)
        await engines_fail(driver)
        await flushed(driver)
        leaks = driver.leaks + await in_postgres(up) + await in_redis(up) + in_arguments(up)
        async with session.get(up.url + "/metrics") as answer:
            leaks += up.canaries.found("/metrics", await answer.read())
        await stopped_in_mid_stream(driver)
    leaks += in_files(up) + up.canaries.found("what obol up prints", up.output, allowed=DEMO_SECRETS)
    assert leaks == []
    assert {400, 401, 402, 403, 404, 405, 409, 413, 429, 500, 502, 503, 200} <= set(driver.statuses.values())
    logs = b"".join(path.read_bytes() for path in (up.directory / "logs").iterdir())
    assert b'"level":"debug"' in logs and b"draining" in logs
    assert len(driver.statuses) > 60


async def test_a_traceback_holds_no_secret(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of a kind that nobody foresaw, whose text has everything in it."""
    settings = msgspec.structs.replace(
        gateway.context.settings,
        provider_keys={"openai": MANAGED, "groq": "swordfish"},
        redis_url="redis://:pass word%21@127.0.0.1:1/0",
        postgres_url="postgresql://obol:p%40ssword@127.0.0.1/x",
    )
    customer = await gateway.customer()
    credential = gateway.token_for(customer, provider_key=OWN)
    secrets = [credential, gateway.merchant.secret_key, customer.connection_secret, gateway.meter.meter_secret, OWN]
    secrets += [*settings.secrets(), MASTER, *settings.provider_keys.values(), "pass word!", "p@ssword"]

    async def fail(*_: object) -> None:
        raise RuntimeError(f"{secrets!r} {'x ' * 3_700} sent {secrets!r}, got {json.dumps(secrets)}")

    monkeypatch.setattr(gateway.parts.upstream, "send", fail)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(log.JsonFormatter([*settings.secrets(), MASTER]))
    logging.getLogger().addHandler(handler)
    try:
        async with gateway.forward(CHAT, credential, json=chat()) as answer:
            told = await answer.text()
    finally:
        logging.getLogger().removeHandler(handler)
    assert (answer.status, json.loads(told)["error"]["code"]) == (500, "internal")
    assert "RuntimeError" in stream.getvalue() and "[redacted]" in stream.getvalue()
    canaries = Canaries(**{f"secret {number}": secret for number, secret in enumerate(secrets)})
    assert canaries.found("the log", stream.getvalue().encode()) + canaries.found("the answer", told.encode()) == []


# `obol up --demo` prints a command to paste, with the demo's own token in it, to whoever started it.
DEMO_SECRETS = IN_REQUESTS


async def engines_fail(driver: Driver) -> None:
    """Kill each engine and call into the gap: errors of drivers, which know the passwords, are logged."""
    good = driver.up.demo["forward_token"]
    for name in ("valkey_pid", "postgres_pid"):
        os.kill(json.loads((driver.up.directory / "up.json").read_text())[name], signal.SIGKILL)
        for number in range(5):
            await driver.call(f"{name} is gone, {number}", good)
            await driver.ask(
                f"{name} is gone, REST {number}",
                "GET",
                "/v1/requests",
                headers={"Authorization": f"Bearer {driver.up.demo['secret_key']}"},
            )
        async with asyncio.timeout(60):
            while driver.statuses.get(f"{name} is back") != 200:
                await driver.call(f"{name} is back", good)
                await asyncio.sleep(0.1)


async def flushed(driver: Driver) -> None:
    """Every charged call is a row."""
    headers = {"Authorization": f"Bearer {driver.up.demo['secret_key']}"}
    async with asyncio.timeout(60):
        while True:
            async with driver.session.get(driver.up.url + "/v1/requests?limit=1", headers=headers) as answer:
                if answer.status == 200 and (await answer.json())["data"]:
                    break
            await asyncio.sleep(0.2)
    async with redis.asyncio.Redis.from_url(driver.up.state["redis_url"]) as client, asyncio.timeout(60):
        while sum([await client.xlen(key) async for key in client.scan_iter("*", _type="stream")]) > 1_000:
            await asyncio.sleep(0.1)


async def in_postgres(up: Installation) -> list[str]:
    """Every value of every column of every table."""
    leaks, rows = [], 0
    connection = await asyncpg.connect(up.state["postgres_url"], timeout=10)
    try:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        for (table,) in tables:
            for row in await connection.fetch(f'SELECT * FROM "{table}"'):
                rows += 1
                for column, value in row.items():
                    data = value if isinstance(value, bytes) else str(value).encode()
                    leaks += up.canaries.found(f"column {table}.{column}", data)
    finally:
        await connection.close()
    assert len(tables) > 15 and rows > 50
    return leaks


async def in_redis(up: Installation) -> list[str]:
    """Every key, and all that it holds."""
    leaks, keys = [], 0
    async with redis.asyncio.Redis.from_url(up.state["redis_url"]) as client:
        async for key in client.scan_iter("*"):
            keys += 1
            kind = (await client.type(key)).decode()
            held = {
                "string": lambda key: client.get(key),
                "hash": lambda key: client.hgetall(key),
                "stream": lambda key: client.xrange(key),
                "zset": lambda key: client.zrange(key, 0, -1),
                "set": lambda key: client.smembers(key),
                "list": lambda key: client.lrange(key, 0, -1),
            }[kind]
            leaks += up.canaries.found(f"Redis, {key!r}", key + b" " + b" ".join(_flat(await held(key))))
    assert keys > 5
    return leaks


def _flat(value: Any) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict):
        yield from _flat(list(value.items()))
    elif isinstance(value, list | tuple | set):
        for each in value:
            yield from _flat(each)


def in_arguments(up: Installation) -> list[str]:
    """The command lines of all processes, which every user of the machine can read."""
    leaks, ours = [], 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes()
            ours += str(up.directory).encode() in line
            leaks += up.canaries.found(f"the arguments of {path.parent.name}", line)
    assert ours >= 2
    return leaks


async def stopped_in_mid_stream(driver: Driver) -> None:
    """SIGTERM with streams under way, which the gateway cuts in the end."""
    own = token(
        secret_key=driver.up.demo["secret_key"],
        connection_secret=driver.up.demo["connection_secret"],
        product_secret=driver.up.demo["product_secret"],
        provider_key=OWN,
    )
    target = "https://api.mistral.ai/v1/chat/completions"
    calls = [
        asyncio.create_task(driver.call(f"cut, {number}", own, target, json=chat(model="mistral-large", stream=True)))
        for number in range(3)
    ]
    await asyncio.sleep(0.5)
    await driver.up.stop()
    await asyncio.gather(*calls, return_exceptions=True)


def in_files(up: Installation) -> list[str]:
    """Logs hold no secret; a file that has to hold some can be read by its owner only."""
    leaks, private = [], []
    for path in sorted(up.directory.rglob("*")):
        if not path.is_file() or path.is_symlink() or "postgres" in path.relative_to(up.directory).parts:
            continue
        found = up.canaries.found(path.name, path.read_bytes())
        if "logs" in path.relative_to(up.directory).parts:
            leaks += found
        elif found:
            private.append(path.name)
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                leaks += [f"{leak}, which others may read" for leak in found]
    assert "demo.json" in private
    return leaks
