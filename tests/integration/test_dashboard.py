"""The dashboard's files, as the application serves them."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from running import RunningGateway
from tests_support import CHAT, chat

from gateway.api.routes import middlewares
from gateway.core.money import format_nano
from gateway.pages import dashboard

STATIC = Path(dashboard.__file__).parent / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
CHROMIUM = shutil.which("chromium")
CHROMIUM_OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --virtual-time-budget=5000 --timeout=20000 --dump-dom"
)
SCRIPTS = sorted(path.name for path in STATIC.glob("*.js"))


@pytest_asyncio.fixture
async def client() -> AsyncIterator[TestClient]:
    app = web.Application(middlewares=middlewares())
    app.add_routes(dashboard.routes())
    async with TestClient(TestServer(app)) as running:
        yield running


async def test_the_page_and_all_it_names_are_served_strictly(client: TestClient) -> None:
    page = await client.get("/dashboard")
    named = re.findall(r'(?:src|href)="(dashboard/[^"]+)"', await page.text())
    assert named == ["dashboard/static/dashboard.css", "dashboard/static/dashboard.js"]
    for path in ["dashboard", *named, *(f"dashboard/static/{name}" for name in SCRIPTS)]:
        reply = await client.get(f"/{path}")
        assert (reply.status, reply.headers["Content-Security-Policy"]) == (200, POLICY), path
        assert reply.headers["Referrer-Policy"] == "no-referrer"
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in reply.headers
        expected = {".css": "text/css", ".js": "text/javascript"}.get(Path(path).suffix, "text/html")
        assert (reply.content_type, reply.charset) == (expected, "utf-8")


async def test_what_the_browser_has_is_not_sent_again(client: TestClient) -> None:
    tag = (await client.get("/dashboard")).headers["ETag"]
    again = await client.get("/dashboard", headers={"If-None-Match": f'"other", W/{tag}'})
    assert (again.status, await again.read(), again.headers["ETag"]) == (304, b"", tag)
    assert (await client.get("/dashboard", headers={"If-None-Match": '"other"'})).status == 200


async def test_a_slash_at_the_end_leads_to_the_page(client: TestClient) -> None:
    reply = await client.get("/dashboard/")
    assert (reply.status, reply.url.path, len(reply.history)) == (200, "/dashboard", 1)


@pytest.mark.parametrize("name", ["dashboard.html", "..%2fdashboard.py", "%2e%2e/dashboard.py", "nothing.js", ""])
async def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    reply = await client.get(f"/dashboard/static/{name}")
    assert (reply.status, (await reply.json())["error"]["code"]) == (404, "not_found")


async def test_it_only_reads(client: TestClient) -> None:
    assert (await client.head("/dashboard")).status == 200
    assert (await client.post("/dashboard")).status == 405


def test_every_import_of_the_scripts_is_a_file() -> None:
    imported = {name for path in STATIC.glob("*.js") for name in re.findall(r'from "\./(.+?)"', path.read_text())}
    assert imported == set(SCRIPTS) - {"dashboard.js"}


def test_nothing_in_the_files_breaks_the_policy() -> None:
    markup = (STATIC / "dashboard.html").read_text()
    assert re.findall(r"<style|<script(?![^>]*src=)|\sstyle=|\son\w+=", markup) == []
    for path in STATIC.iterdir():
        assert re.findall(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(", path.read_text()) == [], path.name
        assert "//" not in re.sub(r"^\s*//.*|http://www\.w3\.org/2000/svg", "", path.read_text(), flags=re.M), path.name


async def test_the_gateway_serves_it(gateway: RunningGateway) -> None:
    async with gateway.session.get(f"{gateway.url}/dashboard") as reply:
        assert (reply.status, reply.content_type) == (200, "text/html")


async def shown_by_chromium(url: str, profile: Path) -> str:
    """The page as a headless browser has it after its scripts ran."""
    assert CHROMIUM is not None
    browser = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *CHROMIUM_OPTIONS.split(),
        f"--user-data-dir={profile}",
        url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        output, _ = await asyncio.wait_for(browser.communicate(), 60)
    finally:
        if browser.returncode is None:
            browser.kill()
            await browser.wait()
    return output.decode()


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
async def test_a_browser_shows_what_the_api_knows_as_text(gateway: RunningGateway, tmp_path: Path) -> None:
    customer = await gateway.customer()
    async with gateway.forward(CHAT, gateway.token_for(customer), json=chat()) as reply:
        assert reply.status == 200
        await reply.read()
    for _ in range(100):
        if await gateway.rows():
            break
        await asyncio.sleep(0.05)
    (flushed,) = await gateway.rows()
    page = await shown_by_chromium(f"{gateway.url}/dashboard#key={gateway.merchant.secret_key}", tmp_path)
    assert gateway.merchant.secret_key not in page
    assert re.findall(r'role="alert"[^>]*>([^<]+)', page) == []
    charge = f"${format_nano(flushed['charge_nano']).rstrip('0')}"
    assert page.count(f">{charge}<") >= 3, "the charge in the totals, the row and the table of days"
    assert f'<td role="cell" data-title="Customer">{customer.connection_id}</td>' in page
    assert '<td role="cell" data-title="Model">gpt-4o-mini</td>' in page
    assert "<li>$20.00 per 1M tokens</li>" in page


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
async def test_a_browser_says_that_a_key_is_wrong(gateway: RunningGateway, tmp_path: Path) -> None:
    page = await shown_by_chromium(f"{gateway.url}/dashboard#key=aks_test_wrong", tmp_path)
    assert "The gateway does not accept this key (401: this secret key is not known)." in page
    assert '<form id="sign-in">' in page
