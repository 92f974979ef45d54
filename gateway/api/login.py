"""Login of the published SDKs: a person approves with a secret key, the SDK's listener on loopback gets a one-time
code, and the SDK exchanges it for a secret key of its own.

    /auth/cli or /auth/connect ?state=&port=   the form: which secret key
      -> POST: the key's merchant, and "approve?"                            a token, APPROVAL_TTL_S
      -> POST: redirect to http://127.0.0.1:<port>/callback?code=&state=     a code, CODE_TTL_S, once
    POST /v1/auth/callback {code}              the new secret key

There is no sign-in of people, so the page asks for what the dashboard asks for. As no cookie carries any authority, a
form sent from elsewhere has none; it is refused all the same.
"""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple
from urllib.parse import urlencode

import asyncpg
import msgspec
from aiohttp import web

from gateway.api import reading
from gateway.api.context import ApiContext, secret_key_form
from gateway.api.login_page import answer_page, approval_page, error_page, key_page
from gateway.api.operation import Call, Nothing, Operation, Text
from gateway.api.wallet_keys import make_wallet_key
from gateway.errors import ObolError
from gateway.store.secrets import digest, hint, new_id, new_secret_key

APPROVAL_TTL_S = 300
CODE_TTL_S = 60
PORTS = range(1_024, 65_536)
STATE_MAX_CHARACTERS = 512
KEY_NAME = "CLI login"
OLDER_PATH = "/auth/cli"
PATHS = (OLDER_PATH, "/auth/connect")
OLDER_CODE = "cli-"
"""With this a code begins for which there is a wallet key as well: SDK 9 cannot do without."""


class Code(msgspec.Struct):
    """What the redirect to the SDK's listener brought."""

    code: Text


class Login(msgspec.Struct):
    """A new secret key, shown once; after a login by /auth/cli, where older SDKs send people, a wallet key too, which
    ends when the secret key is revoked or rotated."""

    secret_key_id: str
    secret_key: str
    merchant_id: str
    account_id: str
    wallet_id: str | None
    wallet_key_id: str | None = None
    wallet_key: str | None = None


class Listener(NamedTuple):
    """Who waits for the code: a port of this person's own machine, and what it wants to hear again."""

    port: int
    state: str

    def address(self, code: str) -> str:
        return f"http://127.0.0.1:{self.port}/callback?{urlencode({'code': code, 'state': self.state})}"


class LoginRoutes:
    """The call, and the two pages, which are one."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    def operations(self) -> list[Operation]:
        return [
            Operation(
                "POST",
                "/v1/auth/callback",
                self.exchange,
                "Exchange a login code for a secret key",
                "Login",
                body=Code,
                answer=Login,
                public=True,
            )
        ]

    def pages(self) -> list[web.RouteDef]:
        return [route for path in PATHS for route in (web.get(path, self.ask), web.post(path, self.go_on))]

    async def exchange(self, call: Call[Code, Nothing]) -> Login:
        """A code is good once, for a minute."""
        async with self._context.store.transaction() as db:  # whatever fails, the code is still good
            login = await self._exchanged(db, call.body.code)
        await self._context.principals.changed(login.merchant_id)
        return login

    async def _exchanged(self, db: asyncpg.Connection, code: str) -> Login:
        found = await self._take(db, code, "code")
        if found is None:
            raise reading.invalid("code", f"is not known, was used before, or is older than {CODE_TTL_S} seconds")
        secret_key_id, secret_key, merchant_id = new_id("sk_"), new_secret_key(found["mode"]), found["merchant_id"]
        made = (secret_key_id, merchant_id, KEY_NAME, digest(secret_key), hint(secret_key))
        await db.execute(self._context.store.sql("keys.secret_insert"), *made)
        login = Login(secret_key_id, secret_key, merchant_id, found["account_id"], found["wallet_id"])
        if code.startswith(OLDER_CODE):
            own = (merchant_id, found["self_connection_id"], KEY_NAME)
            login.wallet_key_id, login.wallet_key = await make_wallet_key(db, *own, secret_key_id=secret_key_id)
        return login

    async def ask(self, request: web.Request) -> web.Response:
        try:
            return answer_page(key_page(_listener(request.query)))
        except ObolError as error:
            return answer_page(error_page(error.message), error.status)

    async def go_on(self, request: web.Request) -> web.Response:
        """Either step of the form: a key, or the approval of what the key's merchant was shown."""
        try:
            _refuse_foreign(request)
            form = await reading.form(request)
            listener, older = _listener(form), request.path == OLDER_PATH
            if form.get("approval"):
                return await self._approved(form["approval"], listener, older=older)
            return await self._shown(form.get("secret_key", ""), listener, older=older)
        except ObolError as error:
            return answer_page(error_page(error.message), error.status)

    async def _shown(self, secret_key: str, listener: Listener, *, older: bool) -> web.Response:
        try:
            merchant = await self._context.principals.merchant(secret_key_form(secret_key.strip()))
        except ObolError as error:
            if error.status != 401:
                raise
            return answer_page(key_page(listener, "This is not a secret key of this installation."), 401)
        await self._context.store.execute("login.sweep")
        approval = await self._kept("approval", digest(secret_key.strip()), APPROVAL_TTL_S)
        page = approval_page(listener, merchant.name, merchant.mode, approval, wallet_key=older)
        return answer_page(page, port=listener.port)

    async def _approved(self, approval: str, listener: Listener, *, older: bool) -> web.Response:
        async with self._context.store.connection() as db:
            found = await self._take(db, approval, "approval")
        if found is None:
            return answer_page(key_page(listener, "That took too long, or was sent before. Please begin again."), 400)
        code = await self._kept("code", found["key_hash"], CODE_TTL_S, OLDER_CODE if older else "")
        headers = {"Location": listener.address(code), "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
        return web.Response(status=303, headers=headers)

    async def _kept(self, step: str, key_hash: bytes, ttl_s: int, prefix: str = "") -> str:
        token = prefix + secrets.token_urlsafe(32)
        await self._context.store.execute("login.keep", digest(token), step, key_hash, ttl_s)
        return token

    async def _take(self, db: asyncpg.Connection, token: str, step: str) -> asyncpg.Record | None:
        return await db.fetchrow(self._context.store.sql("login.take"), digest(token), step)


def _listener(values: Any) -> Listener:
    """Raise ObolError `invalid_request` naming `port` or `state`."""
    port, state = values.get("port", ""), values.get("state", "")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) in PORTS):
        raise reading.invalid("port", f"must be a whole number from {PORTS[0]} to {PORTS[-1]}")
    if not state or len(state) > STATE_MAX_CHARACTERS or not state.isprintable():
        raise reading.invalid("state", f"must be text of 1 to {STATE_MAX_CHARACTERS} printable characters")
    return Listener(int(port), state)


def _refuse_foreign(request: web.Request) -> None:
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    here = site in ("same-origin", "none") if site else origin is None or origin.partition("://")[2] == request.host
    if not here:
        raise ObolError("invalid_request", "this form must be sent from its own page", param="origin")
