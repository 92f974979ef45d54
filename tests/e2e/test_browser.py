"""The dashboard in a real browser: signing in, a call as it arrives, its details, signing out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import openai
import pytest
from billed import STEERED, asked, billed
from installation import Customer, Installation
from playwright.sync_api import ConsoleMessage, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",  # with the two below: it asks nobody outside this machine
    "--disable-component-update",
    "--disable-sync",
]
TIMEOUT_MS = 15_000

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine: install Debian's package chromium"
)


@pytest.fixture
def page() -> Iterator[Page]:
    """A page in which nothing may go wrong unseen: no script may fail, nothing may be blocked or not be found."""
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser:
        page = browser.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        expect.set_options(timeout=TIMEOUT_MS)
        wrong: list[str] = []
        page.on("console", lambda message: wrong.extend(_problem(message)))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        yield page
        assert wrong == []


def _problem(message: ConsoleMessage) -> list[str]:
    return [message.text] if message.type in ("error", "warning") else []


def call(fake: Installation, customer: Customer) -> None:
    client = openai.OpenAI(base_url=f"{fake.url}/v1", api_key=customer.token, max_retries=0)
    client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": STEERED}])


def test_the_dashboard_shows_a_call(fake: Installation, customer: Customer, page: Page) -> None:
    secret_key = fake.gateway.merchant.secret_key
    page.goto(f"{fake.url}/dashboard")
    page.get_by_label("Secret key").fill(secret_key)
    page.get_by_role("button", name="Show the dashboard").click()
    of_customer = page.locator("#requests tr").filter(has_text=customer.made.connection_id)
    expect(page.get_by_role("heading", name="Requests")).to_be_visible()
    expect(of_customer).to_have_count(0)

    call(fake, customer)
    assert billed(fake, customer, "openai", "gpt-4o-mini") == asked()  # it is flushed; the page has to find it
    expect(of_customer).to_have_count(1)
    expect(of_customer).to_contain_text("gpt-4o-mini")
    expect(of_customer).to_contain_text("$0.0068")  # 340 tokens at $20 a million

    of_customer.get_by_role("button").click()
    details = page.get_by_role("dialog")
    expect(details).to_contain_text(fake.row(customer)["request_id"])
    expect(details).to_contain_text("https://api.openai.com/v1/chat/completions")
    page.keyboard.press("Escape")

    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Secret key")).to_be_visible()
    assert secret_key not in page.content()
