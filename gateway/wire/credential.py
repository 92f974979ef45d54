"""The credential of a gateway request: where it stands, which form it has, what it asks for. Pure.

Forms: a secret key (`aks_...`), a spend key (`lava_sk_...`), or a forward token, base64 of a JSON object whose
field names changed over the years; every era's names are read. The dotted form
`secret.connection.product[.provider_key]`, raw or base64, is accepted too.

No error and no `repr` of this module shows any part of a credential.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from gateway.errors import ObolError

MAX_CREDENTIAL_BYTES = 64 * 1024
MAX_FIELD_CHARACTERS = 4096
SECRET_KEY_PREFIX = "aks_"  # noqa: S105 - the prefix only
SPEND_KEY_PREFIX = "lava_sk_"

Kind = Literal["secret_key", "spend_key", "forward_token"]
Mode = Literal["merchant", "meter_only", "customer", "billing_disabled"]

_API_KEY_HEADERS = ("x-api-key", "x-goog-api-key", "xi-api-key", "api-key")
_EXPECTED = (
    "Send a secret key (aks_...), a spend key (lava_sk_...) or a forward token (base64 of JSON with secret_key), "
    "as Authorization: Bearer <credential> or in the provider's own API key header."
)
_URL_SAFE_TO_STANDARD = str.maketrans("-_", "+/")


class Reference(msgspec.Struct, frozen=True):
    """A customer or meter as a token names it: looked up by exact value, whatever `field` says."""

    field: str
    value: str

    def __repr__(self) -> str:
        return f"Reference({self.field})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("field", self.field)]


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """A well-formed credential, not yet looked up. The combination of its fields is one that has a mode."""

    kind: Kind
    secret_key: str
    """The secret key, or the spend key where `kind` says so."""
    customer: Reference | None = None
    meter: Reference | None = None
    provider_key: str | None = None
    """The caller's own key for the provider: printable ASCII without spaces."""
    disable_billing: bool = False
    legacy: bool = False
    """The customer is named by a secret of the first eras, in which the meter was optional."""

    @property
    def mode(self) -> Mode:
        """Who pays: the merchant (attributed to a meter or not), the customer, or the merchant for a customer."""
        if self.customer is None:
            return "merchant" if self.meter is None else "meter_only"
        return "billing_disabled" if self.disable_billing else "customer"

    @property
    def byok(self) -> bool:
        """The provider is called with the caller's own key."""
        return self.provider_key is not None

    def __repr__(self) -> str:
        return f"Credential({self.kind}, {self.mode}, byok={self.byok})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("kind", self.kind), ("mode", self.mode), ("byok", self.byok)]


class _Token(msgspec.Struct):
    """The fields of a forward token over all eras. Others, such as `plan_id`, are ignored; null is absent."""

    secret_key: str | None = None
    connection_secret: str | None = None
    customer_profile_secret: str | None = None
    connection_id: str | None = None
    customer_id: str | None = None
    product_secret: str | None = None
    meter_secret: str | None = None
    meter_slug: str | None = None
    meter_id: str | None = None
    provider_key: str | None = None
    disable_billing: bool | None = None


_LEGACY_FIELDS = ("connection_secret", "customer_profile_secret")
_CUSTOMER_FIELDS = (*_LEGACY_FIELDS, "connection_id", "customer_id")
_METER_FIELDS = ("product_secret", "meter_secret", "meter_slug", "meter_id")
_TOKEN_DECODER = msgspec.json.Decoder(_Token)


def parse(header: Callable[[str], str | None], query_key: str | None = None) -> Credential:
    """The credential of a request. `header` looks up a lower-case header name; `query_key` is `Target.query_key`.

    Raise ObolError `unauthorized`, or `invalid_request` for a combination of fields that has no mode.
    """
    return decode(find(header, query_key))


def find(header: Callable[[str], str | None], query_key: str | None = None) -> str:
    """The credential's text: of `Authorization: Bearer`, else of an API key header, else of the query.

    An `Authorization` without a value counts as absent (SDKs given an empty key send it). Raise `unauthorized`.
    """
    authorization = header("authorization")
    if authorization:
        scheme, _, text = authorization.strip().partition(" ")
        if scheme.lower() != "bearer":
            raise _unauthorized("The Authorization header is not of the form Bearer <credential>.")
        if text := text.strip():
            return text
    for name in _API_KEY_HEADERS:
        value = header(name)
        if value and (text := value.strip()):
            return text
    if query_key:
        return query_key
    raise _unauthorized("The request has no credential.")


def decode(text: str) -> Credential:
    """Read a credential's text. Raise as `parse` does; the answer depends on `text` only, so it may be cached."""
    if len(text) > MAX_CREDENTIAL_BYTES:
        raise _unauthorized(f"The credential is longer than {MAX_CREDENTIAL_BYTES} bytes.")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise _unauthorized("The credential has a space or a character outside printable ASCII.")
    if text.startswith(SPEND_KEY_PREFIX):
        return Credential(kind="spend_key", secret_key=_bounded("spend key", text))
    if text.startswith(SECRET_KEY_PREFIX):
        return _dotted(text) if "." in text else Credential(kind="secret_key", secret_key=_bounded("secret key", text))
    raw = _base64(text)
    if raw.startswith(SECRET_KEY_PREFIX.encode()):
        return _dotted_bytes(raw)
    return _from_json(raw)


def _unauthorized(what: str) -> ObolError:
    return ObolError("unauthorized", f"{what} {_EXPECTED}", param="authorization")


def _base64(text: str) -> bytes:
    """Standard or URL-safe base64, padded or not."""
    digits = text.rstrip("=").translate(_URL_SAFE_TO_STANDARD)
    try:
        return binascii.a2b_base64(digits + "=" * (-len(digits) % 4), strict_mode=True)
    except binascii.Error:
        raise _unauthorized("The credential is neither a known key nor base64.") from None


def _from_json(raw: bytes) -> Credential:
    try:
        token = _TOKEN_DECODER.decode(raw)
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _unauthorized("The forward token is not base64 of a JSON object.") from None
    return _credential(token)


def _wrong_type(told: str) -> ObolError:
    """A field of another type than it has. msgspec names the field and the type it found, never the value."""
    field = told.partition("`$.")[2].partition("`")[0]
    if field in ("", "secret_key"):
        return _unauthorized(f"The forward token does not have the expected fields: {told}.")
    return ObolError("invalid_request", f"{field} of the forward token is not usable: {told}.", param=field)


def _dotted_bytes(raw: bytes) -> Credential:
    try:
        return _dotted(raw.decode("ascii"))
    except UnicodeDecodeError:
        raise _unauthorized("The dotted token has a character outside ASCII.") from None


def _dotted(text: str) -> Credential:
    parts = text.split(".", 3)
    if len(parts) < 3:
        raise _unauthorized("The dotted token is not of the form secret.connection.product[.provider_key].")
    # Here an empty part is how a part is left out.
    secret, connection, product = parts[0], parts[1] or None, parts[2] or None
    provider_key = parts[3] or None if len(parts) == 4 else None
    return _credential(
        _Token(secret_key=secret, connection_secret=connection, product_secret=product, provider_key=provider_key)
    )


def _credential(token: _Token) -> Credential:
    if not token.secret_key:
        raise _unauthorized("The forward token has no secret_key.")
    credential = Credential(
        kind="forward_token",
        secret_key=_bounded("secret_key", token.secret_key),
        customer=_reference(token, _CUSTOMER_FIELDS),
        meter=_reference(token, _METER_FIELDS),
        provider_key=_provider_key(token.provider_key),
        disable_billing=bool(token.disable_billing),
        legacy=any(getattr(token, field) for field in _LEGACY_FIELDS),
    )
    _check_combination(credential)
    return credential


def _reference(token: _Token, fields: tuple[str, ...]) -> Reference | None:
    """The one thing that `fields`, names of it over the eras, agree on.

    Null is absent. An empty string is an unset variable of the caller's: taken for absent, nobody would pay.
    """
    found = None
    for field in fields:
        value = getattr(token, field)
        if value is None:
            continue
        if not value:
            raise ObolError("invalid_request", f"{field} of the forward token is empty; leave it out.", param=field)
        if found is None:
            found = Reference(field, _bounded(field, value))
        elif found.value != value:
            raise ObolError(
                "invalid_request", f"The forward token has both {found.field} and {field}; send one.", param=field
            )
    return found


def _bounded(field: str, value: str) -> str:
    if len(value) > MAX_FIELD_CHARACTERS or not value.isprintable():
        raise _unauthorized(
            f"The credential's {field} is longer than {MAX_FIELD_CHARACTERS} characters or has control characters."
        )
    return value


def _provider_key(value: str | None) -> str | None:
    """It becomes the value of an upstream header, so nothing that could end a header line may be in it."""
    if not value:
        return None
    if not value.isascii() or " " in value:
        raise _unauthorized("The forward token's provider_key is not printable ASCII without spaces.")
    return _bounded("provider_key", value)


def _check_combination(credential: Credential) -> None:
    both = credential.customer is not None and credential.meter is not None
    if credential.disable_billing and not both:
        raise ObolError(
            "invalid_request",
            "The forward token has disable_billing, which needs both a customer and a meter.",
            param="disable_billing",
        )
    if credential.customer is not None and credential.meter is None and not credential.legacy:
        raise ObolError(
            "invalid_request",
            "The forward token has a customer but no meter; add meter_slug.",
            param="meter_slug",
        )
