"""How a webhook is signed: every style that receivers of this wire format verify, side by side in one message. Pure.

- `X-Webhook-Signature: <hex HMAC-SHA256(secret, body)>`, the secret as its whole text.
- `X-Lava-Signature`: the same, or in the style `timestamped` `t=<unix>,v1=<hex HMAC-SHA256(secret, "<t>.<body>")>`.
- Standard Webhooks: `webhook-id`, `webhook-timestamp` and `webhook-signature: v1,<base64 HMAC-SHA256(key,
  "<id>.<timestamp>.<body>")>`, the key being the bytes whose base64 stands behind `whsec_`.

While a rotation is young the previous secrets sign too. Two of the styles have room for several signatures; for the
plain one the earliest signature, which receivers are the likeliest to know, stands in a header of its own.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Literal

_PREFIX = "whsec_"
Style = Literal["default", "timestamped"]
HeaderPairs = list[tuple[bytes, bytes]]


def headers(event_id: str, body: bytes, secrets: Sequence[str], *, timestamp_s: int, style: Style) -> HeaderPairs:
    """The headers that sign `body`. `secrets`: the endpoint's, newest first, at least one."""
    plain = [_hex(secret, body) for secret in secrets]
    standard = [_standard(secret, event_id, timestamp_s, body) for secret in secrets]
    signed = {
        "X-Webhook-Signature": plain[0],
        "X-Lava-Signature": plain[0] if style == "default" else _timestamped(secrets, timestamp_s, body),
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(standard),
    }
    if len(plain) > 1:
        signed["X-Webhook-Signature-Previous"] = plain[-1]
    return [(name.encode(), value.encode()) for name, value in signed.items()]


def _timestamped(secrets: Sequence[str], timestamp_s: int, body: bytes) -> str:
    text = b"%d.%b" % (timestamp_s, body)
    return ",".join([f"t={timestamp_s}", *(f"v1={_hex(secret, text)}" for secret in secrets)])


def _standard(secret: str, event_id: str, timestamp_s: int, body: bytes) -> str:
    key = b64decode(secret.removeprefix(_PREFIX))
    text = b"%b.%d.%b" % (event_id.encode(), timestamp_s, body)
    return "v1," + b64encode(hmac.digest(key, text, hashlib.sha256)).decode()


def _hex(secret: str, text: bytes) -> str:
    return hmac.digest(secret.encode(), text, hashlib.sha256).hex()
