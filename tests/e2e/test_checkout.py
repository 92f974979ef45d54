"""The embedded checkout in a real browser: in pages of another origin with the drop-in script, and with the published
React hook."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkout_customer import plan, read, session
from installation import Installation
from playwright.sync_api import Browser, FrameLocator, Page, expect, sync_playwright
from shop_page import Shop, add_card, introduce, prove
from test_browser import CHROMIUM, FLAGS, TIMEOUT_MS

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine: install Debian's package chromium"
)

_SHOP = """<!doctype html><html lang="en"><title>Shop</title><script src="%(url)s/checkout.js"></script>
<button id="buy">Buy</button><script>
const said = [];
addEventListener("message", (event) => { if (event.data && event.data.type) said.push([event.origin, event.data]); });
const heard = [];
function open() {
  return ObolCheckout.open(%(token)s, {
    onSuccess: (told) => heard.push(["success", told]),
    onCancel: (told) => heard.push(["cancel", told]),
    onError: (error) => heard.push(["error", error.message]),
  });
}
let close;
document.getElementById("buy").addEventListener("click", () => { close = open(); });
</script>"""


_MODULES = Path(__file__).parent / "javascript" / "node_modules"
_REACT = {
    "/react.js": "react/umd/react.production.min.js",
    "/react-dom.js": "react-dom/umd/react-dom.production.min.js",
    "/hook.js": "@lavapayments/checkout/dist/index.js",
}
_REACT_SHOP = """<!doctype html><html lang="en"><title>Shop</title>
<script src="/react.js"></script><script src="/react-dom.js"></script>
<script>
const module = { exports: {} }, exports = module.exports, require = () => React, heard = [];
</script>
<script src="/hook.js"></script>
<main id="root"></main>
<script>
const h = React.createElement;
function App() {
  const [text, write] = React.useState("");
  const { open } = module.exports.useLavaCheckout({
    onSuccess: (told) => heard.push(["success", told, text]),
    onCancel: (told) => heard.push(["cancel", told, text]),
    onError: (told) => heard.push(["error", told, text]),
  });
  return h("div", null,
    h("input", { "aria-label": "Note", value: text, onChange: (event) => write(event.target.value) }),
    h("button", { onClick: () => open(%(token)s) }, "Buy"),
    h("button", { onClick: () => open("no token") }, "Buy badly"));
}
ReactDOM.createRoot(document.getElementById("root")).render(h(App));
</script>"""
with_react = pytest.mark.skipif(
    not (_MODULES / "@lavapayments" / "checkout").is_dir(), reason="the published hook is not installed: run make e2e"
)


def made_with_react(fake: Installation, shop: Shop, *, origin: str | None = None) -> dict[str, Any]:
    """As `made`, of a page with the published hook, whose parent renders on every keystroke."""
    found = made(fake, shop, origin=origin)
    shop.files |= {path: (_MODULES / file).read_text(encoding="utf-8") for path, file in _REACT.items()}
    shop.files["/"] = _REACT_SHOP % {"token": json.dumps(found["checkout_session_token"])}
    return found


@pytest.fixture
def shop() -> Iterator[Shop]:
    made = Shop()
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as started:
        expect.set_options(timeout=TIMEOUT_MS)
        yield started


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_context(viewport={"width": 390, "height": 844}) as context:
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        yield page


def made(fake: Installation, shop: Shop, *, origin: str | None = None) -> dict[str, Any]:
    """A session of a $25 plan, and the shop's page that opens it."""
    sold = fake.run(plan(fake.gateway))
    asked = {"plan_id": sold["plan_id"], "origin_url": origin or shop.url}
    found = fake.run(session(fake.gateway, "subscription", **asked))
    shop.files["/"] = _SHOP % {"url": fake.url, "token": json.dumps(found["checkout_session_token"])}
    return found


def opened(page: Page, shop: Shop) -> FrameLocator:
    page.goto(shop.url)
    page.get_by_role("button", name="Buy").click()
    return page.frame_locator("iframe[title=Checkout]")


def test_it_goes_on_where_it_was_when_it_is_embedded_again(fake: Installation, shop: Shop, page: Page) -> None:
    found = made(fake, shop)
    inside = opened(page, shop)
    prove(inside, "+1 555 010 0101")
    for fill, heading in ((introduce, "Your name and email"), (add_card, "Add a card")):
        expect(inside.get_by_role("heading", name=heading)).to_be_visible()
        page.evaluate("close(); close = open(); null")
        fill(inside)
    expect(inside.get_by_role("heading", name="Confirm")).to_be_visible()
    inside.get_by_role("button", name="Pay $25.00").click()
    expect(inside.get_by_role("heading", name="Thank you")).to_be_visible()
    assert page.evaluate("said") == []
    inside.get_by_role("button", name="Continue").click()
    expect(page.locator("iframe")).to_have_count(0)
    ((kind, told),) = page.evaluate("heard")
    assert (kind, told["checkoutSessionId"]) == ("success", found["checkout_session_id"])
    assert told["connectionId"] == told["customerId"]
    assert told["connectionId"].startswith("con_test_")
    assert page.evaluate("said") == [[fake.url, {"type": "lava_checkout_success", **told}]]


def test_a_finished_one_says_it_again_by_itself(fake: Installation, shop: Shop, page: Page) -> None:
    made(fake, shop)
    inside = opened(page, shop)
    prove(inside, "+1 555 010 0102")
    introduce(inside)
    add_card(inside)
    inside.get_by_role("button", name="Pay $25.00").click()
    expect(inside.get_by_role("heading", name="Thank you")).to_be_visible()
    page.reload()
    page.get_by_role("button", name="Buy").click()
    page.wait_for_function("heard.length === 1")
    assert page.evaluate("heard[0][0]") == "success"


def test_it_is_cancelled_by_the_button_and_by_a_key(fake: Installation, shop: Shop, page: Page) -> None:
    found = made(fake, shop)
    inside = opened(page, shop)
    inside.get_by_role("button", name="Close").click()
    page.wait_for_function("heard.length === 1")
    page.get_by_role("button", name="Buy").click()
    inside.get_by_label("Mobile phone number").press("Escape")
    page.wait_for_function("heard.length === 2")
    assert page.evaluate("heard") == [["cancel", {"checkoutSessionId": found["checkout_session_id"]}]] * 2


def test_another_origin_may_not_embed_it(fake: Installation, shop: Shop, page: Page) -> None:
    made(fake, shop, origin="https://app.example.com")
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    inside = opened(page, shop)
    page.wait_for_timeout(500)
    assert inside.get_by_role("heading").count() == 0
    assert any("frame-ancestors" in text for text in refused)
    assert page.evaluate("heard") == []


def test_a_token_that_cannot_be_read_and_one_that_leads_nowhere(fake: Installation, shop: Shop, page: Page) -> None:
    made(fake, shop)
    page.goto(shop.url)
    page.evaluate("ObolCheckout.open('no token', {onError: (error) => heard.push(['error', error.name])}); null")
    assert [kind for kind, _ in page.evaluate("heard")] == ["error"]
    unknown = f"btoa(JSON.stringify({{secret: 'css_test_unknown', base: '{fake.url}/'}}))"
    page.evaluate(f"ObolCheckout.open({unknown}, {{onCancel: () => heard.push(['cancel', null])}}); null")
    inside = page.frame_locator("iframe[title=Checkout]")
    expect(inside.get_by_role("heading", name="cannot be shown")).to_be_visible()
    inside.get_by_role("button", name="Close").click()
    page.wait_for_function("heard.length === 2")


def test_it_is_done_without_a_mouse(fake: Installation, shop: Shop, page: Page) -> None:
    found = made(fake, shop)
    page.goto(f"{fake.url}/checkout/{found['secret']}")
    for text in ("+1 555 010 0103", "000000", ("ada@example.com", "Ada", "L"), ("4242424242424242", "12/40", "123")):
        page.wait_for_function("document.activeElement instanceof HTMLInputElement")
        heading = page.get_by_role("heading").inner_text()
        for part in (text,) if isinstance(text, str) else text:
            page.keyboard.type(part)
            page.keyboard.press("Tab")
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name=heading, exact=True)).to_have_count(0)
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Pay $25.00")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Thank you")).to_be_visible()
    expect(page.get_by_role("link", name="Back to 127.0.0.1")).to_have_attribute(
        "href", f"{shop.url}?checkout=complete"
    )


@with_react
def test_the_published_hook_hears_the_success(fake: Installation, shop: Shop, page: Page) -> None:
    found = made_with_react(fake, shop)
    page.goto(shop.url)
    page.get_by_role("button", name="Buy", exact=True).click()
    inside = page.frame_locator("iframe")
    prove(inside, "+1 555 010 0104")
    expect(inside.get_by_role("heading", name="Your name and email")).to_be_visible()
    # The page around renders while the checkout is open.
    page.get_by_label("Note").evaluate("(input) => input.focus()")
    page.keyboard.type("abc")
    introduce(inside)
    add_card(inside)
    inside.get_by_role("button", name="Pay $25.00").click()
    inside.get_by_role("button", name="Continue").click()
    page.wait_for_function("heard.length === 1")
    ((kind, told, _),) = page.evaluate("heard")
    assert (kind, told["checkoutSessionId"]) == ("success", found["checkout_session_id"])
    shown = fake.run(read(fake.gateway, found))
    assert told["connectionId"] == shown["connection_id"]
    expect(page.locator("iframe")).to_have_count(0)


@with_react
def test_the_published_hook_hears_a_cancel_and_a_bad_token(fake: Installation, shop: Shop, page: Page) -> None:
    found = made_with_react(fake, shop)
    page.goto(shop.url)
    page.get_by_role("button", name="Buy", exact=True).click()
    page.frame_locator("iframe").get_by_role("button", name="Close").click()
    page.wait_for_function("heard.length === 1")
    page.get_by_role("button", name="Buy badly").click()
    page.wait_for_function("heard.length === 2")
    cancelled, bad = page.evaluate("heard")
    assert cancelled[:2] == ["cancel", {"checkoutSessionId": found["checkout_session_id"]}]
    assert (bad[0], bad[1]["checkoutSessionId"]) == ("error", "no token")


@with_react
def test_the_published_hook_in_a_page_of_another_origin(fake: Installation, shop: Shop, page: Page) -> None:
    made_with_react(fake, shop, origin="https://app.example.com")
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(shop.url)
    page.get_by_role("button", name="Buy", exact=True).click()
    page.wait_for_timeout(500)
    assert any("frame-ancestors" in text for text in refused)
    assert page.evaluate("heard") == []


def test_the_emailed_link(fake: Installation, shop: Shop, page: Page) -> None:
    found = made(fake, shop)
    page.goto(f"{fake.url}/{found['checkout_session_token']}")
    expect(page.get_by_role("heading", name="Your phone number")).to_be_visible()
    assert page.url == f"{fake.url}/checkout/{found['secret']}"


def test_in_a_page_of_another_site(fake: Installation, shop: Shop, page: Page) -> None:
    """`localhost` and `127.0.0.1` are two sites: cookies of the frame are partitioned."""
    elsewhere = shop.url.replace("127.0.0.1", "localhost")
    made(fake, shop, origin=elsewhere)
    page.goto(elsewhere)
    page.get_by_role("button", name="Buy").click()
    inside = page.frame_locator("iframe[title=Checkout]")
    prove(inside, "+1 555 010 0105")
    expect(inside.get_by_role("heading", name="Your name and email")).to_be_visible()
    page.evaluate("close(); close = open(); null")
    introduce(inside)
    add_card(inside)
    inside.get_by_role("button", name="Pay $25.00").click()
    expect(inside.get_by_role("heading", name="Thank you")).to_be_visible()
