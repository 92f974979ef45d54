"""Secrets: made, hashed, derived. None is stored in clear.

Secret keys are random and shown once. Connection and meter secrets must be shown again on every read
(the published clients fetch them), so they are derived from the installation's master key and the id:
the database holds their hash for lookup and nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from base64 import b64encode, urlsafe_b64encode

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"


def digest(secret: str) -> bytes:
    """What the database stores and looks a secret up by. The secrets have 192 bits or more: no salt is needed."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def new_id(prefix: str) -> str:
    """An id that sorts by creation time: prefix, 48 bits of milliseconds, 80 random bits, in Crockford's base 32."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return prefix + "".join(_CROCKFORD[(value >> shift) & 31] for shift in range(125, -1, -5))


def new_secret_key(mode: str) -> str:
    return f"aks_{mode}_{secrets.token_urlsafe(32)}"


def new_key(prefix: str) -> str:
    """A key such as `lava_sk_...`."""
    return prefix + secrets.token_urlsafe(32)


def preview(key: str) -> str:
    """What is shown of such a key: its prefix and the first eight of 43 characters."""
    return f"{key[:16]}****"


def hint(key: str) -> str:
    """By which its owner knows a key that is not shown again: its last four characters."""
    return key[-4:]


class Derived:
    """Secrets that are functions of the master key."""

    def __init__(self, master_key: str) -> None:
        if len(master_key) < 32:
            raise ValueError("OBOL_MASTER_KEY needs at least 32 characters")
        self._key = master_key.encode()

    def connection_secret(self, mode: str, connection_id: str) -> str:
        return f"cons_{mode}_{self._derive('connection', connection_id)}"

    def meter_secret(self, mode: str, meter_id: str) -> str:
        return f"ps_{mode}_{self._derive('meter', meter_id)}"

    def checkout_secret(self, mode: str, checkout_session_id: str) -> str:
        return f"css_{mode}_{self._derive('checkout', checkout_session_id)}"

    def phone_hash(self, phone: str) -> bytes:
        """What a phone number (E.164) is looked up by. Keyed: there are few enough numbers to try them all."""
        return self._tag("phone", phone)

    def webhook_secret(self, webhook_id: str, number: int) -> str:
        """The `number`th of an endpoint. Behind `whsec_` stands base64 of 32 bytes, as Standard Webhooks reads it."""
        return "whsec_" + b64encode(self._tag("webhook", f"{webhook_id}:{number}")).decode()

    def _derive(self, purpose: str, name: str) -> str:
        return urlsafe_b64encode(self._tag(purpose, name)).decode().rstrip("=")

    def _tag(self, purpose: str, name: str) -> bytes:
        return hmac.new(self._key, f"{purpose}:{name}".encode(), hashlib.sha256).digest()
