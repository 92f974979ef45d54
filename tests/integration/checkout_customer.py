"""A customer's browser at the checkout, without a browser: it reads pages, keeps cookies and sends forms."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from html import unescape
from http.cookies import SimpleCookie
from typing import Any

import msgspec
from running import RunningGateway

ORIGIN = "https://app.example.com"
PHONE = "+1 555 010 0042"
GOOD, DECLINED, LATER, ALWAYS_ASKS, ASKS = (
    "4242 4242 4242 4242",
    "4000 0000 0000 0002",
    "4000 0000 0000 0341",
    "4000 0027 6000 3184",
    "4000 0025 0000 3155",
)


class Seen(msgspec.Struct, frozen=True):
    """A page."""

    status: int
    text: str
    headers: Any

    @property
    def heading(self) -> str:
        found = re.search(r'<h1 id="heading">(.*?)</h1>', self.text)
        assert found is not None, self.text
        return unescape(found[1])

    @property
    def error(self) -> str:
        found = re.search(r'<p class="error"[^>]*role="alert">(.*?)</p>', self.text)
        return unescape(found[1]) if found is not None else ""

    @property
    def told(self) -> dict[str, str]:
        """What the script tells the page around it."""
        found = re.search(r"<body[^>]*>", self.text)
        assert found is not None
        return dict(re.findall(r'data-(\w+)="([^"]*)"', found[0]))


class Browser:
    """One that visits a session's page. `embedded`: in the merchant's page."""

    def __init__(
        self, gateway: RunningGateway, secret: str, *, embedded: bool = True, keeps_cookies: bool = True
    ) -> None:
        self.gateway = gateway
        self.keeps_cookies = keeps_cookies
        self.proof = ""
        self.url = f"{gateway.url}/{'embed/' if embedded else ''}checkout/{secret}"
        self.cookies: dict[str, str] = {}

    async def look(self) -> Seen:
        async with self.gateway.session.get(self.url, cookies=self.cookies) as answer:
            self._keep(answer.cookies)
            return self._seen(Seen(answer.status, await answer.text(), answer.headers))

    def _keep(self, sent: SimpleCookie) -> None:
        if self.keeps_cookies:
            self.cookies |= {name: morsel.value for name, morsel in sent.items()}

    def _seen(self, page: Seen) -> Seen:
        found = re.search(r'name="proof" value="([^"]*)"', page.text)
        self.proof = found[1] if found is not None else ""
        return page

    async def send(self, act: str, *, headers: dict[str, str] | None = None, **fields: str) -> Seen:
        """Send a form, and follow it to the page that comes next."""
        given = {"Origin": self.gateway.url, "Sec-Fetch-Site": "same-origin"} if headers is None else headers
        form = {"act": act, **fields} | ({"proof": self.proof} if self.proof else {})
        async with self.gateway.session.post(
            self.url, data=form, headers=given, cookies=self.cookies, allow_redirects=False
        ) as answer:
            self._keep(answer.cookies)
            if answer.status != 303:
                return self._seen(Seen(answer.status, await answer.text(), answer.headers))
        return await self.look()

    async def prove(self, phone: str = PHONE) -> Seen:
        await self.look()
        await self.send("send", phone=phone)
        return await self.send("code", code="000000")

    async def introduce(self) -> Seen:
        return await self.send("contact", email="ada@example.com", first_name="Ada", last_name="Lovelace")

    async def card(self, number: str = GOOD) -> Seen:
        return await self.send("card", number=number, expiry="12/40", cvc="123")

    async def arrive(self, phone: str = PHONE, number: str = GOOD) -> Seen:
        """A new customer, up to the confirmation."""
        await self.prove(phone)
        await self.introduce()
        return await self.card(number)


async def api(gateway: RunningGateway, method: str, path: str, body: Any = None, key: str | None = None) -> Any:
    headers = {"Authorization": f"Bearer {key or gateway.merchant.secret_key}", "Content-Type": "application/json"}
    data = b"" if body is None else msgspec.json.encode(body)
    async with gateway.session.request(method, f"{gateway.url}{path}", data=data, headers=headers) as answer:
        text = await answer.read()
        assert answer.status < 300, (answer.status, text)
        return msgspec.json.decode(text)


async def session(gateway: RunningGateway, mode: str, **fields: Any) -> dict[str, Any]:
    """A checkout session as the API shows it, and its secret."""
    made = await api(gateway, "POST", "/v1/checkout_sessions", {"checkout_mode": mode, "origin_url": ORIGIN} | fields)
    return made | {"secret": json.loads(b64decode(made["checkout_session_token"]))["secret"]}


async def read(gateway: RunningGateway, made: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = await api(gateway, "GET", f"/v1/checkout_sessions/{made['checkout_session_id']}")
    return found


async def plan(gateway: RunningGateway, dollars: int = 25, name: str = "Pro", **fields: Any) -> dict[str, Any]:
    asked = {"name": name, "period_amount": f"{dollars}.00", "billing_interval": "month", **fields}
    made: dict[str, Any] = await api(gateway, "POST", "/v1/plans", asked)
    return made


async def told(gateway: RunningGateway) -> list[str]:
    """The events that the merchant's endpoint is told, in their order."""
    async with gateway.context.store.connection() as db:
        rows = await db.fetch("SELECT event FROM webhook_deliveries ORDER BY sequence")
    return [row["event"] for row in rows]
