"""Credentials: where they stand, every era's form, the mode table, and that none is ever shown."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from gateway.errors import ObolError
from gateway.wire import credential
from gateway.wire.credential import Credential, Reference, decode, parse

SECRET = "aks_live_canary0"
CUSTOMER = "con_canary1"
METER = "ps_live_canary2"
PROVIDER_KEY = "sk-canary3"


def encoded(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.b64encode(raw).decode()


def token(**fields: Any) -> str:
    return encoded({"secret_key": SECRET, **fields})


def refused(text: str) -> ObolError:
    with pytest.raises(ObolError) as caught:
        decode(text)
    assert "canary" not in caught.value.message
    return caught.value


class TestWhere:
    @pytest.mark.parametrize(
        "headers",
        [
            {"authorization": f"Bearer {SECRET}"},
            {"authorization": f"bearer {SECRET}"},
            {"authorization": f" BEARER   {SECRET} "},
            {"x-api-key": SECRET},
            {"x-goog-api-key": SECRET},
            {"xi-api-key": SECRET},
            {"api-key": SECRET},
            {"authorization": f"Bearer {SECRET}", "x-api-key": "other"},
            {"authorization": "Bearer ", "x-api-key": SECRET},
            {"authorization": "", "x-goog-api-key": SECRET},
            {"x-api-key": " ", "api-key": SECRET},
        ],
    )
    def test_headers(self, headers: dict[str, str]) -> None:
        assert parse(headers.get).secret_key == SECRET
        assert parse(headers.get, "from-the-query").secret_key == SECRET

    def test_query(self) -> None:
        assert parse({}.get, SECRET).secret_key == SECRET

    @pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer"}, {"authorization": "Basic canary"}])
    def test_none(self, headers: dict[str, str]) -> None:
        with pytest.raises(ObolError, match=r"Authorization: Bearer <credential>") as caught:
            parse(headers.get)
        assert (caught.value.code, caught.value.status) == ("unauthorized", 401)
        assert "canary" not in caught.value.message

    def test_another_scheme_is_not_passed_over(self) -> None:
        with pytest.raises(ObolError, match="not of the form Bearer"):
            parse({"authorization": "Basic eA==", "x-api-key": SECRET}.get)


class TestForms:
    def test_secret_key(self) -> None:
        assert decode(SECRET) == Credential(kind="secret_key", secret_key=SECRET)

    def test_spend_key(self) -> None:
        found = decode("lava_sk_canary")
        assert (found.kind, found.secret_key, found.mode) == ("spend_key", "lava_sk_canary", "merchant")

    @pytest.mark.parametrize(
        ("fields", "customer", "meter", "legacy"),
        [
            (("connection_secret", "product_secret"), True, True, True),
            (("connection_secret", "meter_secret"), True, True, True),
            (("connection_id", "meter_slug"), True, True, False),
            (("customer_id", "meter_slug"), True, True, False),
            (("customer_id", "meter_id"), True, True, False),
            (("customer_profile_secret",), True, False, True),
            (("connection_secret",), True, False, True),
            (("meter_slug",), False, True, False),
            ((), False, False, False),
        ],
    )
    def test_every_era(self, fields: tuple[str, ...], customer: bool, meter: bool, legacy: bool) -> None:
        found = decode(token(plan_id="subconf_1", **{field: f"{field}-value" for field in fields}))
        assert (found.kind, found.secret_key, found.legacy) == ("forward_token", SECRET, legacy)
        assert found.customer == (Reference(fields[0], f"{fields[0]}-value") if customer else None)
        assert found.meter == (Reference(fields[-1], f"{fields[-1]}-value") if meter else None)

    def test_null_is_absent(self) -> None:
        nulls = dict.fromkeys(["customer_id", "connection_secret", "meter_slug", "provider_key", "disable_billing"])
        assert decode(token(**nulls)) == decode(token())

    @pytest.mark.parametrize("field", ["customer_id", "connection_secret", "meter_slug", "product_secret"])
    def test_empty_is_refused_by_name(self, field: str) -> None:
        with pytest.raises(ObolError) as caught:
            decode(token(**{field: ""}))
        assert (caught.value.code, caught.value.param) == ("invalid_request", field)

    def test_an_empty_provider_key_is_absent(self) -> None:
        assert decode(token(provider_key="")) == decode(token())

    @pytest.mark.parametrize("length", range(8))
    def test_base64_alphabets_and_padding(self, length: int) -> None:
        raw = json.dumps(
            {"secret_key": SECRET, "customer_id": "ÿ>?" + "x" * length, "meter_slug": "m"}, ensure_ascii=False
        )
        expected = decode(encoded(raw.encode()))
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(raw.encode()).decode()
            assert decode(text) == expected
            assert decode(text.rstrip("=")) == expected

    def test_aliases_that_agree(self) -> None:
        found = decode(token(connection_id=CUSTOMER, customer_id=CUSTOMER, meter_slug=METER))
        assert found.customer == Reference("connection_id", CUSTOMER)

    @pytest.mark.parametrize(
        "fields",
        [{"connection_id": CUSTOMER, "customer_id": "con_canary9"}, {"meter_slug": METER, "meter_id": "canary"}],
    )
    def test_aliases_that_contradict(self, fields: dict[str, str]) -> None:
        error = refused(token(**fields))
        assert (error.code, error.param) == ("invalid_request", list(fields)[1])

    @pytest.mark.parametrize("raw", [True, False])
    def test_dotted(self, raw: bool) -> None:
        def form(text: str) -> str:
            return text if raw else encoded(text.encode())

        found = decode(form(f"{SECRET}.{CUSTOMER}.{METER}"))
        assert (found.customer, found.meter) == (
            Reference("connection_secret", CUSTOMER),
            Reference("product_secret", METER),
        )
        assert (found.legacy, found.mode, found.provider_key) == (True, "customer", None)
        assert decode(form(f"{SECRET}.{CUSTOMER}.{METER}.a.b")).provider_key == "a.b"
        assert decode(form(f"{SECRET}...")).mode == "merchant"
        assert refused(form(f"{SECRET}.{CUSTOMER}")).code == "unauthorized"


# customer, meter, provider_key, disable_billing -> mode, or the field at fault
MODES = [
    (0, 0, 0, 0, "merchant", None),
    (0, 1, 0, 0, "meter_only", None),
    (1, 1, 0, 0, "customer", None),
    (1, 1, 0, 1, "billing_disabled", None),
    (0, 0, 1, 0, "merchant", None),
    (0, 1, 1, 0, "meter_only", None),
    (1, 1, 1, 0, "customer", None),
    (1, 1, 1, 1, "billing_disabled", None),
    (1, 0, 0, 0, None, "meter_slug"),
    (1, 0, 1, 0, None, "meter_slug"),
    (1, 0, 0, 1, None, "disable_billing"),
    (0, 1, 0, 1, None, "disable_billing"),
    (0, 0, 0, 1, None, "disable_billing"),
    (0, 0, 1, 1, None, "disable_billing"),
]


@pytest.mark.parametrize(("customer", "meter", "provider_key", "disable_billing", "mode", "fault"), MODES)
def test_modes(
    customer: int, meter: int, provider_key: int, disable_billing: int, mode: str | None, fault: str | None
) -> None:
    text = token(
        customer_id=CUSTOMER if customer else None,
        meter_slug=METER if meter else None,
        provider_key=PROVIDER_KEY if provider_key else None,
        disable_billing=bool(disable_billing),
    )
    if fault:
        error = refused(text)
        assert (error.code, error.status, error.param) == ("invalid_request", 400, fault)
    else:
        found = decode(text)
        assert (found.mode, found.byok) == (mode, bool(provider_key))


@pytest.mark.parametrize(
    ("field", "value", "status", "param"),
    [
        ("disable_billing", "canary", 400, "disable_billing"),
        ("disable_billing", 1, 400, "disable_billing"),
        ("customer_id", 7, 400, "customer_id"),
        ("provider_key", ["canary"], 400, "provider_key"),
        ("secret_key", 7, 401, "authorization"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(field: str, value: Any, status: int, param: str) -> None:
    error = refused(token(**{"customer_id": "con_1", "meter_slug": "m", field: value}))
    assert (error.status, error.param) == (status, param)
    assert field in error.message


def test_legacy_customer_needs_no_meter() -> None:
    assert decode(token(connection_secret=CUSTOMER)).mode == "customer"
    assert refused(token(connection_secret=CUSTOMER, disable_billing=True)).param == "disable_billing"


@pytest.mark.parametrize(
    "text",
    [
        "canary",
        "canary canary",
        "cänary",
        "lava_wk_canary",
        "sk-proj-canary_1",
        "eyJhbGciOiJIUzI1NiJ9.eyJjYW5hcnkiOjF9.canary",
        "=",
        "====",
        "e30",
        "A",
        encoded(b"canary"),
        encoded(b"\xff\xfe"),
        encoded(b"{"),
        encoded(b'{"a":' + b"[" * 20_000),
        encoded(b'{"secret_key": "\\ud800"}'),
        encoded(["canary"]),
        encoded("canary"),
        encoded({}),
        encoded({"secret_key": None}),
        encoded({"secret_key": ""}),
        encoded({"secret_key": 7}),
        encoded({"secret_key": ["canary"]}),
        encoded({"secret_key": "canary\x00"}),
        encoded({"secret_key": "canary" * 1000}),
        token(customer_id="canary\n", meter_slug="m"),
        token(provider_key="canary\r\nx: y"),
        token(provider_key="canary y"),
        token(provider_key="cänary"),
        "aks_" + "canary" * 1000,
        "aks_canary\x00",
        "A" * (credential.MAX_CREDENTIAL_BYTES + 1),
    ],
)
def test_garbled(text: str) -> None:
    error = refused(text)
    assert (error.code, error.status) == ("unauthorized", 401)
    assert "forward token" in error.message


def test_nothing_secret_is_shown() -> None:
    found = decode(token(customer_id=CUSTOMER, meter_slug=METER, provider_key=PROVIDER_KEY))
    shown = f"{found!r} {found!s} {found} {found.customer!r} {found.__rich_repr__()} {found.customer.__rich_repr__()}"
    assert "canary" not in shown
    assert repr(found) == "Credential(forward_token, customer, byok=True)"
