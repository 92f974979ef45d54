"""Keeps the installation's own provider key out of error answers that quote it.

Only answers of status 300 and above, to calls made with the installation's key, are looked at: they are read whole,
which for an error costs nobody anything. All other bytes stay the provider's.
"""

from __future__ import annotations

from gateway.errors import ObolError
from gateway.proxy.decoding import decoder_for
from gateway.proxy.http_client import HeaderPairs, HttpConnection

BODY_MAX_BYTES = 256 * 1024
DECODED_MAX_BYTES = 1024 * 1024
SECRET_MIN_BYTES = 8
"""A shorter key (a stand-in's, as a rule) would be found in ordinary words."""


async def mask(connection: HttpConnection, secret: bytes) -> None:
    """Replace `secret` by as many asterisks, in the headers and the body of an answer whose head has arrived.

    Raise ObolError `upstream_failed` for a body that is too large or in an encoding nobody asked for.
    """
    if len(secret) < SECRET_MIN_BYTES:
        return
    connection.reason = masked(connection.reason, secret)
    connection.headers = [(name, masked(value, secret)) for name, value in connection.headers]
    body = masked(await _whole(connection), secret)
    encoding = ", ".join(
        value.decode("latin-1") for name, value in connection.headers if name.lower() == b"content-encoding"
    )
    decoder = decoder_for(encoding, DECODED_MAX_BYTES) if body else None
    if decoder is not None:
        plain = decoder.feed(body) + b"".join(decoder.rest())
        if decoder.failed:
            raise ObolError("upstream_failed", f"the provider answered {connection.status} with an unreadable body")
        if secret in plain:
            body = masked(plain, secret)
            connection.headers = _as_identity(connection.headers, len(body))
    connection.put_back(body)


async def _whole(connection: HttpConnection) -> bytes:
    """All that comes. An answer that is cut short is cut short for the client too: `read` raises again."""
    pieces, size = [], 0
    try:
        while piece := await connection.read():
            pieces.append(piece)
            size += len(piece)
            if size > BODY_MAX_BYTES:
                break
    except ObolError:
        return b"".join(pieces)
    if size > BODY_MAX_BYTES:
        raise ObolError(
            "upstream_failed", f"the provider answered {connection.status} with more than {BODY_MAX_BYTES} bytes"
        )
    return b"".join(pieces)


def masked(text: bytes, secret: bytes) -> bytes:
    """`text` with asterisks for the secret; one that is too short to be one is left."""
    return text.replace(secret, b"*" * len(secret)) if len(secret) >= SECRET_MIN_BYTES else text


def _as_identity(headers: HeaderPairs, length: int) -> HeaderPairs:
    kept = [pair for pair in headers if pair[0].lower() not in (b"content-encoding", b"content-length")]
    return [*kept, (b"Content-Length", b"%d" % length)]
