"""Secret keys, wallet keys and stored provider keys: made, shown once, rotated, revoked, and whom they serve. What
anybody may ask for without a key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from running import MASTER_KEY, RunningGateway, running_gateway, token
from tests_support import CHAT, chat

from gateway.api.wallet_keys import make_wallet_key
from gateway.billing.accounts import NewMerchant
from gateway.billing.principals import Principals
from gateway.local.fake.directive import Directive
from gateway.store.sealed import Sealed, Unsealable
from gateway.testing import FakeProvider, steering_header

pytestmark = pytest.mark.asyncio(loop_scope="module")

STORED = "sk-stored-by-the-merchant-0123"
MANAGED = "sk-of-installation"
_numbers = iter(range(1_000))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    keys = {"openai": MANAGED, "groq": "sk-of-groq"}
    async with (
        FakeProvider(Directive()) as answering,
        running_gateway(*engines, answering, provider_keys=keys) as running,
    ):
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def merchant(gateway: RunningGateway) -> NewMerchant:
    gateway.provider.clear()
    return await gateway.accounts.create_merchant(f"account {next(_numbers)}", "test", "Its own")


async def api(gateway: RunningGateway, method: str, path: str, key: str, body: Any = None) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {key}"}
    async with gateway.session.request(method, gateway.url + path, json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def forward(gateway: RunningGateway, credential: str, target: str = CHAT, **more: Any) -> tuple[int, Any]:
    async with gateway.forward(target, credential, json=chat(), **more) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_a_secret_key_is_shown_once_and_works_until_it_is_revoked(gateway, merchant):
    first = merchant.secret_key
    status, made = await api(gateway, "POST", "/v1/secret_keys", first, {"name": "CI"})
    assert (status, made["name"], made["secret_key_hint"]) == (201, "CI", made["secret_key"][-4:])
    assert made["secret_key"].startswith("aks_test_")
    _, listed = await api(gateway, "GET", "/v1/secret_keys", made["secret_key"])
    assert [each["name"] for each in listed["data"]] == ["CI", "Default"]
    assert not any("secret_key" in each for each in listed["data"])
    assert (await forward(gateway, made["secret_key"]))[0] == 200
    path = f"/v1/secret_keys/{made['secret_key_id']}"
    _, rotated = await api(gateway, "POST", path + "/rotate", first)
    assert (await forward(gateway, made["secret_key"]))[0] == 401
    assert (await forward(gateway, rotated["secret_key"]))[0] == 200
    assert (await api(gateway, "DELETE", path, first))[1]["success"] is True
    assert (await forward(gateway, rotated["secret_key"]))[0] == 401
    assert (await api(gateway, "DELETE", path, first))[0] == 404


async def test_the_only_secret_key_cannot_be_revoked(gateway, merchant):
    _, listed = await api(gateway, "GET", "/v1/secret_keys", merchant.secret_key)
    path = f"/v1/secret_keys/{listed['data'][0]['secret_key_id']}"
    status, refused = await api(gateway, "DELETE", path, merchant.secret_key)
    assert (status, refused["error"]["code"]) == (409, "last_secret_key")
    status, rotated = await api(gateway, "POST", path + "/rotate", merchant.secret_key)
    assert status == 200
    assert (await api(gateway, "GET", "/v1/secret_keys", merchant.secret_key))[0] == 401
    assert (await api(gateway, "GET", "/v1/secret_keys", rotated["secret_key"]))[0] == 200


async def test_a_wallet_key_manages_the_spend_keys_of_its_wallet_only(gateway, merchant):
    made = await gateway.accounts.create_customer(merchant.merchant_id, "test", limit_nano=0)
    async with gateway.context.store.connection() as db:
        _, wallet_key = await make_wallet_key(db, merchant.merchant_id, made.connection_id, "Laptop")
    _, own = await api(gateway, "POST", "/v1/spend_keys", merchant.secret_key, {"name": "the merchant's"})
    status, mine = await api(gateway, "POST", "/v1/spend_keys", wallet_key, {"name": "mine"})
    assert status == 201, mine
    assert mine["wallet_id"] == made.wallet.wallet_id
    _, listed = await api(gateway, "GET", "/v1/spend_keys", wallet_key)
    assert [each["name"] for each in listed["data"]] == ["mine"]
    for method in ("GET", "PUT", "DELETE"):
        path = f"/v1/spend_keys/{own['spend_key_id']}"
        assert (await api(gateway, method, path, wallet_key, {} if method == "PUT" else None))[0] == 404
    other = {"name": "x", "connection_id": merchant.self_connection_id}
    assert (await api(gateway, "POST", "/v1/spend_keys", wallet_key, other))[0] == 404
    assert (await api(gateway, "GET", "/v1/secret_keys", wallet_key))[0] == 401
    _, keys = await api(gateway, "GET", "/v1/wallet_keys", wallet_key)
    (shown,) = keys["data"]
    assert (shown["wallet_id"], shown["key_preview"]) == (made.wallet.wallet_id, wallet_key[:16] + "****")
    assert shown["last_used_at"] is not None
    path = f"/v1/wallet_keys/{shown['wallet_key_id']}"
    _, rotated = await api(gateway, "POST", path + "/rotate", wallet_key)
    assert (await api(gateway, "GET", "/v1/spend_keys", wallet_key))[0] == 401
    assert (await api(gateway, "GET", "/v1/spend_keys", rotated["key"]))[0] == 200
    assert (await api(gateway, "DELETE", path, gateway.merchant.secret_key))[0] == 404
    assert (await api(gateway, "DELETE", path, merchant.secret_key))[1]["success"] is True
    assert (await api(gateway, "GET", "/v1/spend_keys", rotated["key"]))[0] == 401


async def test_the_wallet_of_a_merchant_and_of_a_wallet_key(gateway, merchant):
    status, own = await api(gateway, "GET", "/v1/wallet", merchant.secret_key)
    assert (status, own["connection_id"], own["balance"]) == (200, merchant.self_connection_id, "0.0000000000")
    made = await gateway.accounts.create_customer(merchant.merchant_id, "test", limit_nano=3 * 10**9)
    async with gateway.context.store.connection() as db:
        _, wallet_key = await make_wallet_key(db, merchant.merchant_id, made.connection_id, "Laptop")
    _, its = await api(gateway, "GET", "/v1/wallet", wallet_key)
    assert (its["wallet_id"], its["balances"]["available"]) == (made.wallet.wallet_id, "3.0000000000")
    assert (await api(gateway, "GET", "/v1/wallet", "lava_wk_nope"))[0] == 401


async def test_a_wallet_cannot_be_funded_and_is_told_so(gateway, merchant):
    key = merchant.secret_key
    assert await api(gateway, "GET", "/v1/payment_methods", key) == (200, {"data": [], "has_more": False})
    funding = {"payment_method_id": "pm_1", "amount": "10.00"}
    for amount in ("9.99", "10000.01"):
        status, refused = await api(gateway, "POST", "/v1/wallet/fund", key, funding | {"amount": amount})
        assert (status, refused["error"]["param"]) == (400, "amount")
    status, refused = await api(gateway, "POST", "/v1/wallet/fund", key, funding)
    assert (status, refused["error"]["code"]) == (404, "payment_method_not_found")


async def test_a_stored_provider_key_comes_before_the_installations(gateway, merchant):
    path = "/v1/provider_keys"
    status, stored = await api(gateway, "PUT", path, merchant.secret_key, {"provider": "openai", "key": STORED})
    assert (status, stored["key_hint"]) == (200, STORED[-4:])
    for credential, expected in (
        (merchant.secret_key, STORED),
        (gateway.merchant.secret_key, MANAGED),
        (token_with(merchant, provider_key="sk-of-the-caller"), "sk-of-the-caller"),
    ):
        gateway.provider.clear()
        assert (await forward(gateway, credential))[0] == 200
        assert gateway.provider.requests[0].header("authorization") == f"Bearer {expected}"
    _, spend_key = await api(gateway, "POST", "/v1/spend_keys", merchant.secret_key, {"name": "x"})
    assert (await forward(gateway, spend_key["key"]))[0] == 200
    assert gateway.provider.requests[-1].header("authorization") == f"Bearer {STORED}"
    rows = await gateway.rows("merchant_id = $1", merchant.merchant_id)
    assert [row["provider_key_type"] for row in rows] == ["stored", "unmanaged", "stored"]
    shown = await api(gateway, "GET", path, merchant.secret_key)
    assert STORED not in str(shown)
    assert (await api(gateway, "GET", f"{path}/openai", merchant.secret_key))[1] == shown[1]["data"][0]
    assert (await api(gateway, "GET", f"{path}/openai", gateway.merchant.secret_key))[0] == 404
    assert (await api(gateway, "DELETE", f"{path}/openai", gateway.merchant.secret_key))[0] == 404
    assert (await api(gateway, "DELETE", f"{path}/openai", merchant.secret_key))[1]["success"] is True
    gateway.provider.clear()
    assert (await forward(gateway, merchant.secret_key))[0] == 200
    assert gateway.provider.requests[0].header("authorization") == f"Bearer {MANAGED}"


def token_with(merchant: NewMerchant, **fields: Any) -> str:
    return token(secret_key=merchant.secret_key, **fields)


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("provider", {"key": STORED}),
        ("provider", {"provider": "nobody", "key": STORED}),
        ("key", {"provider": "openai", "key": "short"}),
        ("key", {"provider": "openai", "key": "with a space in it"}),
        ("key", {"provider": "openai", "key": "sk-öäü-0123456"}),
        ("key", {"provider": "openai"}),
    ],
)
async def test_a_bad_provider_key_is_refused_by_its_field(gateway, field, body):
    status, refused = await api(gateway, "PUT", "/v1/provider_keys", gateway.merchant.secret_key, body)
    assert (status, refused["error"]["param"]) == (400, field)


async def test_a_stored_key_is_masked_and_in_no_column_in_clear(gateway, merchant):
    await api(gateway, "PUT", "/v1/provider_keys/openai", merchant.secret_key, {"key": STORED})
    async with gateway.context.store.connection() as db:
        row = await db.fetchrow(
            "SELECT sealed, key_hint FROM provider_keys WHERE merchant_id = $1", merchant.merchant_id
        )
    assert STORED.encode() not in row["sealed"]
    found = await gateway.context.principals.merchant(merchant.secret_key)
    assert STORED not in repr(found)
    # A provider that says the key back in an error.
    status, told = await forward(gateway, merchant.secret_key, headers=steering_header(fault="status:401"))
    assert status == 401
    assert STORED not in str(told)


async def test_a_row_that_is_copied_to_another_merchant_is_no_key_there(gateway, merchant):
    await api(gateway, "PUT", "/v1/provider_keys/openai", merchant.secret_key, {"key": STORED})
    thief = await gateway.accounts.create_merchant(f"account {next(_numbers)}", "test", "Thief")
    async with gateway.context.store.connection() as db:
        await db.execute(
            "INSERT INTO provider_keys (merchant_id, provider, sealed, key_hint) "
            "SELECT $2, provider, sealed, key_hint FROM provider_keys WHERE merchant_id = $1",
            merchant.merchant_id,
            thief.merchant_id,
        )
    gateway.provider.clear()
    status, refused = await forward(gateway, thief.secret_key)
    assert (status, refused["error"]["code"]) == (502, "upstream_key_missing")
    assert gateway.provider.request_count == 0
    elsewhere = Principals(gateway.context.store, gateway.context.principals._announce, sealed=Sealed("another" * 8))
    stored = (await elsewhere.merchant(merchant.secret_key)).stored_keys
    assert stored is not None
    assert "openai" in stored


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/gpt-4o-mini"])
@pytest.mark.parametrize(
    ("headers", "shape"),
    [
        ({"Authorization": "Bearer {}"}, {"param": "authorization", "type": "authentication_error"}),
        ({"x-api-key": "{}", "anthropic-version": "2023-06-01"}, {"type": "authentication_error"}),
        ({"x-goog-api-key": "{}"}, {"code": 401, "status": "UNAUTHENTICATED"}),
    ],
)
async def test_whoever_asks_for_models_with_no_key_is_told_in_its_own_dialect(gateway, path, headers, shape):
    sent = {name: value.format("lava_sk_nope") for name, value in headers.items()}
    async with gateway.session.get(gateway.url + path, headers=sent) as answer:
        told = await answer.json()
    assert answer.status == 401
    assert told["error"].items() >= shape.items()
    assert ("type" in told) == ("anthropic-version" in headers)
    async with gateway.session.get(gateway.url + "/openapi.json") as answer:
        document = await answer.json()
    described = document["paths"][path.replace("gpt-4o-mini", "{id}")]["get"]["responses"]
    assert set(described) >= {"200", "401", "403", "404"}


async def test_the_catalogue_has_the_models_on_offer_with_their_prices(gateway):
    async with gateway.session.get(f"{gateway.url}/v1/services") as answer:
        services = (await answer.json())["data"]
    async with gateway.session.get(f"{gateway.url}/v1/models") as answer:
        assert [each["id"] for each in services] == [each["id"] for each in (await answer.json())["data"]]
    (mini,) = (each for each in services if each["id"] == "gpt-4o-mini")
    assert (mini["provider"], mini["model"]) == ("openai", "gpt-4o-mini")
    assert mini["pricing"]["rates"].items() >= {"input_mtok": "0.15", "output_mtok": "0.6"}.items()
    async with gateway.session.get(f"{gateway.url}/v1/services", params={"provider": "groq"}) as answer:
        groqs = (await answer.json())["data"]
    assert groqs == [each for each in services if each["provider"] == "groq"]
    assert 0 < len(groqs) < len(services)


async def test_what_is_sealed_opens_with_its_own_master_key_and_place_only():
    sealed = Sealed(MASTER_KEY)
    value = sealed.seal("secret", "a", "bc")
    assert value != sealed.seal("secret", "a", "bc")
    assert sealed.open(value, "a", "bc") == "secret"
    for opener, place, text in (
        (sealed, ("ab", "c"), value),
        (Sealed("n" * 64), ("a", "bc"), value),
        (sealed, ("a", "bc"), value[:-1] + bytes([value[-1] ^ 1])),
        (sealed, ("a", "bc"), b""),
    ):
        with pytest.raises(Unsealable):
            opener.open(text, *place)
