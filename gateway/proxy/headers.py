"""Which headers pass in each direction."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from gateway.providers import Provider
from gateway.proxy.decoding import ENCODINGS
from gateway.proxy.http_client import HeaderPairs

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_OURS = _HOP_BY_HOP | {
    b"authorization",
    b"x-api-key",
    b"x-goog-api-key",
    b"xi-api-key",
    b"api-key",
    b"cookie",
    b"host",
    b"content-length",
    b"content_length",  # a server may read an underscore as a dash
    b"transfer_encoding",
    b"expect",
    b"accept-encoding",
    b"forwarded",
    b"x-real-ip",
    b"x-client-ip",
    b"x-cluster-client-ip",
    b"true-client-ip",
    b"cf-connecting-ip",
    b"fastly-client-ip",
    # A method other than the one that was metered.
    b"x-http-method",
    b"x-http-method-override",
    b"x-method-override",
}
_OUR_PREFIXES = (b"x-lava-", b"x-forwarded-")
_USUAL_CONNECTION = (b"keep-alive", b"close")


def to_provider(
    raw: Iterable[tuple[bytes, bytes]],
    provider: Provider | None,
    provider_key: str | None,
    *,
    compressed: bool,
) -> HeaderPairs:
    """The client's headers without its credential, the hop-by-hop ones and ours; the provider's own added.

    `compressed`: the answer may be compressed, in an encoding the meter can read, if the client offered one.
    """
    headers, accepted, declared = [], b"", b""
    for pair in raw:
        name = pair[0].lower()
        if name in _OURS:
            if name == b"accept-encoding":
                accepted = pair[1]
            elif name == b"connection":
                declared += b"," + pair[1] if declared else pair[1]
        elif not name.startswith(_OUR_PREFIXES):
            headers.append(pair)
    if declared and declared.lower() not in _USUAL_CONNECTION:
        hop_by_hop = {part.strip().lower() for part in declared.split(b",")}
        headers = [pair for pair in headers if pair[0].lower() not in hop_by_hop]
    headers.append((b"Accept-Encoding", _acceptable(accepted) if compressed else b"identity"))
    if provider is not None:
        if provider.default_headers:
            names = {name.lower() for name, _ in headers}
            for default, text in provider.default_headers.items():
                if default.encode() not in names:
                    headers.append((default.encode(), text.encode("latin-1")))
        if provider_key:
            key_name, key_value = provider.credential_header(provider_key)
            headers.append((key_name.encode(), key_value.encode("latin-1")))
    elif provider_key:
        headers.append((b"authorization", f"Bearer {provider_key}".encode("latin-1")))
    return headers


@lru_cache(maxsize=256)
def _acceptable(offered: bytes) -> bytes:
    """What of the client's Accept-Encoding the meter can decode; "identity" where nothing is left."""
    parts = [part.strip() for part in offered.decode("latin-1").lower().split(",")]
    known = [part for part in parts if part.partition(";")[0].strip() in ENCODINGS]
    return ", ".join(known).encode() or b"identity"


def to_client(headers: HeaderPairs, request_id: str, *, hidden: bool) -> HeaderPairs:
    """The provider's headers as they came, without hop-by-hop ones, plus `x-lava-request-id`.

    `hidden`: a chunk of the body may be withheld, so its declared length no longer holds.
    """
    kept, declared = [], b""
    for pair in headers:
        name = pair[0].lower()
        if name in _HOP_BY_HOP:
            if name == b"connection":
                declared += b"," + pair[1] if declared else pair[1]
        elif name != b"x-lava-request-id" and not (hidden and name == b"content-length"):
            kept.append(pair)
    if declared and declared.lower() not in _USUAL_CONNECTION:
        hop_by_hop = {part.strip().lower() for part in declared.split(b",")}
        kept = [pair for pair in kept if pair[0].lower() not in hop_by_hop]
    kept.append((b"x-lava-request-id", request_id.encode()))
    return kept
