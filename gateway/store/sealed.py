"""Secrets that have to be read again, such as a merchant's keys of providers: sealed with a key from the master key.

ChaCha20-Poly1305 with a random nonce. A sealed value opens only for the place that it was sealed for, so that a row
copied to another merchant is no key there. Format: version (1 byte), id of the sealing key (4), nonce (12), ciphertext.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_VERSION = b"\x01"
_KEY_BYTES, _ID_BYTES, _NONCE_BYTES = 32, 4, 12


class Unsealable(Exception):
    """The value was sealed with another master key, for another place, or is damaged."""


class Sealed:
    """Seals and opens with a key derived from the installation's master key."""

    def __init__(self, master_key: str) -> None:
        self._id, key = _derived(master_key)
        self._cipher = ChaCha20Poly1305(key)

    def seal(self, secret: str, *place: str) -> bytes:
        """`place`: what the secret belongs to, such as a merchant and a provider."""
        nonce = os.urandom(_NONCE_BYTES)
        return _VERSION + self._id + nonce + self._cipher.encrypt(nonce, secret.encode(), _said(place))

    def open(self, sealed: bytes, *place: str) -> str:
        """Raise Unsealable."""
        ours = _VERSION + self._id
        if not sealed.startswith(ours):
            raise Unsealable("it was sealed with another master key")
        nonce, text = sealed[len(ours) : len(ours) + _NONCE_BYTES], sealed[len(ours) + _NONCE_BYTES :]
        try:
            return self._cipher.decrypt(nonce, text, _said(place)).decode()
        except (InvalidTag, ValueError):
            raise Unsealable("it was sealed for another place, or is damaged") from None


def _derived(master_key: str) -> tuple[bytes, bytes]:
    """An id, which tells nothing of the key, and the key."""
    made = HKDF(hashes.SHA256(), _ID_BYTES + _KEY_BYTES, salt=None, info=b"obol sealed secrets 1")
    both = made.derive(master_key.encode())
    return both[:_ID_BYTES], both[_ID_BYTES:]


def _said(place: tuple[str, ...]) -> bytes:
    """No two places are the same bytes."""
    return b"".join(len(each.encode()).to_bytes(4, "big") + each.encode() for each in place)
