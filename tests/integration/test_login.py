"""Login of the SDKs: the pages, the one-time code, and the key that it brings."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from api_fixtures import Api
from shared_api import shared_api  # noqa: F401

from gateway.api import login
from gateway.errors import ObolError

pytestmark = pytest.mark.asyncio(loop_scope="module")

_LEFT_S = "SELECT extract(epoch FROM max(expires_at) - now())::integer FROM logins WHERE step = 'code'"
LISTENER = {"port": "43210", "state": "s t&<'\""}


async def send(api: Api, path: str = "/auth/connect", headers: Any = None, **form: str) -> Any:
    """The form sent: status, text, headers."""
    async with api.client.post(
        path, data={**LISTENER, **form}, headers=headers or {}, allow_redirects=False
    ) as response:
        return response.status, await response.text(), response.headers


async def exchange(api: Api, code: str) -> Any:
    async with api.client.post("/v1/auth/callback", data=msgspec.json.encode({"code": code})) as response:
        return response.status, msgspec.json.decode(await response.read())


async def approval(api: Api, secret_key: str | None = None) -> str:
    status, text, headers = await send(api, secret_key=secret_key or api.merchant.secret_key)
    assert status == 200, text
    assert "Shop" in text
    assert "wallet key" not in text
    assert "43210" in text
    assert "form-action 'self' http://127.0.0.1:43210;" in headers["Content-Security-Policy"]
    assert api.merchant.secret_key not in text
    found = re.search(r'name="approval" value="([^"]+)"', text)
    assert found is not None
    return found[1]


async def code(api: Api, path: str = "/auth/connect") -> str:
    status, _, headers = await send(api, path, approval=await approval(api))
    assert status == 303
    target = urlsplit(headers["Location"])
    query = parse_qs(target.query)
    assert (target.scheme, target.netloc, target.path) == ("http", "127.0.0.1:43210", "/callback")
    assert query["state"] == [LISTENER["state"]]
    return query["code"][0]


@pytest.mark.parametrize("path", ["/auth/cli", "/auth/connect"])
async def test_the_page_asks_for_a_key(api: Api, path: str) -> None:
    async with api.client.get(path, params=LISTENER) as response:
        text = await response.text()
        assert response.status == 200
        assert "script" not in text
        assert 'value="s t&amp;&lt;&#x27;&quot;"' in text
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["Cache-Control"] == "no-store"


async def test_a_login_brings_a_key_that_works(api: Api) -> None:
    taken = await code(api)
    status, answer = await exchange(api, taken)
    assert status == 200
    assert set(answer) == {
        "secret_key_id",
        "secret_key",
        "merchant_id",
        "account_id",
        "wallet_id",
        "wallet_key_id",
        "wallet_key",
    }
    assert (answer["merchant_id"], answer["account_id"]) == (api.merchant.merchant_id, "acc_1")
    assert answer["wallet_key"] is answer["wallet_key_id"] is None
    assert answer["wallet_id"].startswith("wal_")
    assert (await api.call("GET", "/v1/meters", key=answer["secret_key"])).status == 200
    async with api.store.connection() as db:
        kept = await db.fetchrow("SELECT * FROM secret_keys WHERE secret_key_id = $1", answer["secret_key_id"])
        assert await db.fetchval("SELECT count(*) FROM logins WHERE token_hash = sha256($1)", taken.encode()) == 0
    assert (kept["name"], kept["secret_key_hint"]) == ("CLI login", answer["secret_key"][-4:])


async def test_older_sdks_get_a_wallet_key_too(api: Api) -> None:
    status, answer = await exchange(api, await code(api, "/auth/cli"))
    assert status == 200
    (listed,) = (await api.call("GET", "/v1/wallet_keys", key=answer["wallet_key"])).body["data"]
    assert (listed["wallet_key_id"], listed["name"]) == (answer["wallet_key_id"], "CLI login")
    assert listed["wallet_id"] == answer["wallet_id"]


async def test_what_an_older_login_brought_ends_with_its_secret_key(api: Api) -> None:
    _, text, _ = await send(api, "/auth/cli", secret_key=api.merchant.secret_key)
    assert "wallet key" in text
    for method, action in (("DELETE", ""), ("POST", "/rotate")):
        _, other = await exchange(api, await code(api, "/auth/cli"))
        _, ended = await exchange(api, await code(api, "/auth/cli"))
        assert (await api.call(method, f"/v1/secret_keys/{ended['secret_key_id']}{action}")).status == 200
        assert (await api.call("GET", "/v1/spend_keys", key=ended["wallet_key"])).status == 401
        listed = (await api.call("GET", "/v1/wallet_keys")).body["data"]
        assert ended["wallet_key_id"] not in [each["wallet_key_id"] for each in listed]
        assert (await api.call("GET", "/v1/spend_keys", key=other["wallet_key"])).status == 200


async def test_a_code_whose_keys_were_not_both_made_is_still_good(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise ObolError("store_unavailable", "the database is not reachable")

    taken = await code(api, "/auth/cli")
    keys = (await api.call("GET", "/v1/secret_keys", limit="100")).body["data"]
    with monkeypatch.context() as patched:
        patched.setattr(login, "make_wallet_key", fail)
        assert (await exchange(api, taken))[0] == 503
    assert (await api.call("GET", "/v1/secret_keys", limit="100")).body["data"] == keys
    assert (await exchange(api, taken))[0] == 200


async def test_a_code_is_good_once_for_a_minute_and_as_long_as_its_key(api: Api) -> None:
    used = await code(api)
    assert (await exchange(api, used))[0] == 200
    await refused(api, used)
    await refused(api, "unknown")
    late = await code(api)
    async with api.store.connection() as db:
        left_s = await db.fetchval(_LEFT_S)
        assert 55 < left_s <= 60
        assert late not in str(await db.fetch("SELECT * FROM logins"))
        await db.execute("UPDATE logins SET expires_at = now()")
    await refused(api, late)
    outlived = await code(api)
    async with api.store.connection() as db:
        await db.execute("UPDATE secret_keys SET revoked_at = now()")
        await refused(api, outlived)
        await db.execute("UPDATE secret_keys SET revoked_at = NULL")


async def refused(api: Api, bad: str) -> None:
    status, answer = await exchange(api, bad)
    assert (status, answer["error"]["param"]) == (400, "code")
    assert isinstance(answer["error"]["message"], str)


async def test_an_approval_is_good_once_and_is_no_code(api: Api) -> None:
    token = await approval(api)
    assert (await exchange(api, token))[0] == 400
    token = await approval(api)
    assert (await send(api, approval=token))[0] == 303
    assert (await send(api, approval=token))[0] == 400
    taken = await code(api)
    assert (await send(api, approval=taken))[0] == 400


@pytest.mark.parametrize("key", ["", "aks_live_unknown", "lava_sk_x", "aks_\x00", "aks_" + "x" * 5000, "aks_é"])
async def test_no_merchant_no_approval(api: Api, key: str) -> None:
    status, text, _ = await send(api, secret_key=key)
    assert status == 401
    assert 'name="approval"' not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "1023"),
        ("port", "65536"),
        ("port", "80"),
        ("port", "43210@evil.example"),
        ("port", "４３２１０"),
        ("state", ""),
        ("state", "a\nb"),
        ("state", "x" * 513),
    ],
)
async def test_only_a_port_of_this_computer_is_answered(api: Api, name: str, value: str) -> None:
    async with api.client.get("/auth/connect", params={**LISTENER, name: value}) as response:
        assert response.status == 400
    assert (await send(api, approval=await approval(api), **{name: value}))[0] == 400


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}, {"Origin": "http://["}, {"Origin": "null"}],
)
async def test_a_form_from_elsewhere_is_refused(api: Api, headers: dict[str, str]) -> None:
    assert (await send(api, headers=headers, secret_key=api.merchant.secret_key))[0] == 400
    assert (await send(api, headers=headers, approval=await approval(api)))[0] == 400
    assert (await send(api, headers={"Sec-Fetch-Site": "same-origin"}, approval=await approval(api)))[0] == 303
