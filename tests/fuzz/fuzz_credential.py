"""The credential parser under fuzz. Oracles: a second reading with the standard library, and a round trip."""

from __future__ import annotations

import base64
import json
from random import Random
from typing import Any

from fuzzing import Mutator

from gateway.errors import ObolError
from gateway.wire import credential
from gateway.wire.credential import Credential

CODES = ("unauthorized", "invalid_request")
CUSTOMER_FIELDS = ("connection_secret", "customer_profile_secret", "connection_id", "customer_id")
METER_FIELDS = ("product_secret", "meter_secret", "meter_slug", "meter_id")
FIELDS = ("secret_key", *CUSTOMER_FIELDS, *METER_FIELDS, "provider_key", "disable_billing", "plan_id")
CANARY = "canary-4711"
TEXTS = (
    CANARY,
    "aks_test_" + CANARY,
    "",
    " ",
    "a",
    "b",
    "sk-" + CANARY,
    "é" + CANARY,
    "x\ny",
    "\x00",
    "😀",
    "x" * 5_000,
)
VALUES: tuple[Any, ...] = (*TEXTS, None, True, False, 0, 1.5, [], {}, ["a"], {"a": None}, 10**30)
ERAS = (
    {"secret_key": "aks_test_1"},
    {"secret_key": "aks_test_1", "connection_secret": "cons_test_2", "product_secret": "ps_test_3"},
    {"secret_key": "aks_test_1", "customer_id": "con_test_2", "meter_slug": "tokens", "disable_billing": True},
    {"secret_key": "aks_test_1", "customer_profile_secret": "cps_2", "meter_secret": None, "provider_key": "sk-4"},
    {"secret_key": "aks_live_1", "connection_id": "con_live_2", "meter_id": "met_live_3", "plan_id": "plan_4"},
)
TOKENS = [json.dumps(era).encode() for era in ERAS]
DOTTED = [b"aks_test_1.cons_test_2.ps_test_3", b"aks_test_1.cons_test_2.ps_test_3.sk-own.key", b"aks_test_1..ps_test_3"]
PLAIN = [
    b"aks_test_canary-4711",
    b"aks_live_x",
    b"lava_sk_test_canary-4711",
    *map(base64.b64encode, (*TOKENS, *DOTTED)),
]
WORDS = [
    *(
        b"aks_",
        b"lava_sk_",
        b".",
        b"..",
        b"=",
        b"==",
        b"-",
        b"_",
        b"+",
        b"/",
        b" ",
        b"\t",
        b"Bearer ",
        b"\xff",
        b"\xc3\xa9",
    ),
    *(b"{", b"}", b'"', b":", b",", b"null", b"true", b"[", b"]", b"\\u0000", b"\\ud800", b"\\u006b", b"\\", b"\n"),
    *(b"1e999", b"-0", b"NaN", b"[" * 1_200, b'{"a":' * 400, b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\x00", b"\x7f"),
    *(f'"{name}":'.encode() for name in FIELDS),
]
_json = Mutator(TOKENS, WORDS, max_bytes=8_000)
_dotted = Mutator(DOTTED, WORDS)
_text = Mutator(PLAIN, [*WORDS, b"A", b"ey", b"eyJ"], max_bytes=80_000)


def make(random: Random) -> bytes:
    """A credential's text, as bytes of a header."""
    kind = random.random()
    if kind < 0.3:
        return _encoded(_json(random), random)
    if kind < 0.6:
        return _encoded(json.dumps(_fields(random), ensure_ascii=random.random() < 0.5).encode(), random)
    if kind < 0.75:
        dotted = _dotted(random)
        return dotted if random.random() < 0.5 else _encoded(dotted, random)
    return _text(random)


def _fields(random: Random) -> dict[str, Any]:
    """A token of fields of all eras, mostly with good values: the combinations are what matters."""
    number = random.random
    fields: dict[str, Any] = {"secret_key": "aks_test_" + CANARY} if number() < 0.9 else {}
    for _ in range(int(number() * 5)):
        pool = TEXTS[:2] if number() < 0.7 else VALUES
        fields[FIELDS[int(number() * len(FIELDS))]] = pool[int(number() * len(pool))]
    return fields


def _encoded(raw: bytes, random: Random) -> bytes:
    text = (base64.b64encode if random.random() < 0.7 else base64.urlsafe_b64encode)(raw)
    return text.rstrip(b"=") if random.random() < 0.3 else text


def check(data: bytes, random: Random) -> str:
    text = data.decode("utf-8", "surrogateescape")
    try:
        found = _parsed(text, random)
    except ObolError as error:
        assert error.code in CODES, error.code
        assert CANARY not in error.message
        assert len(error.message) < 1_000
        return error.code
    _check_fields(found)
    if found.kind == "forward_token":
        _check_second_reading(found, text.strip())
        _check_round_trip(found)
    return f"{found.kind}: {found.mode}"


def _parsed(text: str, random: Random) -> Credential:
    """From one of its places; a header's value arrives without the spaces around it."""
    place = random.random()
    if place < 0.5:
        return credential.decode(text.strip())
    if place < 0.75:
        return credential.parse({"authorization": f"Bearer {text}"}.get)
    if place < 0.9:
        return credential.parse({"authorization": "", "x-api-key": text}.get)
    return credential.parse({}.get, text.strip())


def _check_fields(found: Credential) -> None:
    texts = [found.secret_key, found.provider_key, *(one.value for one in (found.customer, found.meter) if one)]
    for text in texts:
        assert text is None or (0 < len(text) <= credential.MAX_FIELD_CHARACTERS and text.isprintable())
    assert found.provider_key is None or (found.provider_key.isascii() and " " not in found.provider_key)
    assert not found.disable_billing or (found.customer and found.meter)
    assert found.customer is None or found.meter is not None or found.legacy
    assert CANARY not in repr(found)


def _check_second_reading(found: Credential, text: str) -> None:
    """The standard library reads the same fields."""
    fields = _second_reading(text)
    assert found.secret_key == fields["secret_key"]
    assert found.provider_key == (fields.get("provider_key") or None)
    assert found.disable_billing == bool(fields.get("disable_billing"))
    for reference, names in ((found.customer, CUSTOMER_FIELDS), (found.meter, METER_FIELDS)):
        values = {fields[name] for name in names if fields.get(name) is not None}
        assert values == ({reference.value} if reference else set())


def _second_reading(text: str) -> dict[str, Any]:
    if text.startswith("aks_"):
        return _dotted_fields(text)
    digits = text.rstrip("=").replace("-", "+").replace("_", "/")
    raw = base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    if raw.startswith(b"aks_"):
        return _dotted_fields(raw.decode())
    fields = json.loads(raw.decode("utf-8", "surrogateescape"))  # in members that nobody reads anything may stand
    assert isinstance(fields, dict)
    return fields


def _dotted_fields(text: str) -> dict[str, Any]:
    names = ("secret_key", "connection_secret", "product_secret", "provider_key")
    return {name: part or None for name, part in zip(names, text.split(".", 3), strict=False)}


def _check_round_trip(found: Credential) -> None:
    """Written down anew it is the same credential."""
    fields: dict[str, Any] = {"secret_key": found.secret_key, "provider_key": found.provider_key}
    fields |= {one.field: one.value for one in (found.customer, found.meter) if one}
    fields["disable_billing"] = found.disable_billing
    assert credential.decode(base64.b64encode(json.dumps(fields).encode()).decode()) == found
