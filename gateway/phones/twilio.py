"""Twilio Verify, by its REST API (v2): it makes the code, sends it, counts the checks, forgets it after ten minutes.

The Verify service must be set to codes of six digits, which is Twilio's default. Sources: Twilio's reference of
Verifications, VerificationChecks and its error codes.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Any, Final

import aiohttp
import msgspec

from gateway.errors import ObolError
from gateway.phones.contract import CODE_DIGITS, Checked, Mode

TWILIO: Final = "https://verify.twilio.com"
_ANSWER_MAX_BYTES: Final = 64 * 1024
_CONNECT_TIMEOUT_S: Final = 5
_CONNECTIONS_MAX: Final = 16
_NOT_FOUND: Final = 20404
_CHECKS_REACHED: Final = 60202
_REFUSED: Final = MappingProxyType(
    {
        20429: ("too_many_requests", "too many codes are being sent: try again in a minute"),
        60200: ("invalid_request", "this is not the number of a phone"),
        60202: ("too_many_requests", "too many wrong codes were tried for this phone number: wait ten minutes"),
        60203: ("too_many_requests", "too many codes were sent to this phone number: wait ten minutes"),
        60205: ("invalid_request", "this is a landline, which gets no text messages"),
        60207: ("too_many_requests", "too many codes are being sent: try again in a minute"),
        60220: ("invalid_request", "codes cannot be sent to this country"),
        60410: ("invalid_request", "codes cannot be sent to this phone number"),
        60605: ("invalid_request", "codes cannot be sent to this country"),
        21211: ("invalid_request", "this is not the number of a phone"),
        21408: ("invalid_request", "codes cannot be sent to this country"),
        21610: ("invalid_request", "this phone has asked to get no messages"),
        21614: ("invalid_request", "this phone gets no text messages"),
    }
)
"""Twilio's error codes that the customer can do something about: ours, and what to say."""


class _Answer(msgspec.Struct, frozen=True):
    status: str | int = ""
    code: int = 0


class Twilio:
    """PhoneCodes of live merchants. Make it in a running loop; it opens no connection before the first code."""

    name = "twilio"
    mode: Mode = "live"

    def __init__(
        self, account_sid: str, auth_token: str, service_sid: str, *, timeout_ms: int, base_url: str = ""
    ) -> None:
        self._service = f"{base_url or TWILIO}/v2/Services/{service_sid}"
        self._session = aiohttp.ClientSession(
            headers={"Authorization": aiohttp.encode_basic_auth(account_sid, auth_token)},
            timeout=aiohttp.ClientTimeout(total=timeout_ms / 1000, connect=_CONNECT_TIMEOUT_S),
            connector=aiohttp.TCPConnector(limit=_CONNECTIONS_MAX),
        )

    async def close(self) -> None:
        await self._session.close()

    async def send(self, phone: str, purpose: str) -> None:
        """While a code is good, Twilio sends the same one again."""
        status, answer = await self._post("Verifications", {"To": phone, "Channel": "sms"})
        if status == 201:
            return
        code, text = _REFUSED.get(answer.code, ("", ""))
        if not code:
            raise _unavailable(status, answer)
        raise ObolError(code, text, param="phone" if code == "invalid_request" else None)

    async def check(self, phone: str, code: str) -> Checked:
        given = code.strip()
        if not re.fullmatch(rf"[0-9]{{{CODE_DIGITS}}}", given):
            return "wrong"  # Twilio takes this for a mistake of ours, and does not count it
        status, answer = await self._post("VerificationCheck", {"To": phone, "Code": given})
        if status == 200:
            return "right" if answer.status == "approved" else "wrong"
        if answer.code == _NOT_FOUND:
            return "expired"
        if answer.code == _CHECKS_REACHED:
            return "too_many"
        raise _unavailable(status, answer)

    async def _post(self, path: str, form: dict[str, str]) -> tuple[int, _Answer]:
        """Status and answer. Once: a code that was sent twice would do no harm, but cost."""
        try:
            async with self._session.post(f"{self._service}/{path}", data=form, allow_redirects=False) as response:
                body = await response.content.read(_ANSWER_MAX_BYTES)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _away(type(error).__name__) from None
        return response.status, _read(body)


def _read(body: bytes) -> _Answer:
    """An answer that says nothing known is judged by its status."""
    try:
        return msgspec.json.decode(body, type=_Answer)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return _Answer()


def _unavailable(status: int, answer: _Answer) -> ObolError:
    return _away(f"HTTP {status}, code {answer.code}" if answer.code else f"HTTP {status}")


def _away(why: str) -> ObolError:
    details: dict[str, Any] = {"reason": why}
    text = "codes cannot be sent or checked at the moment: the sender did not answer as expected"
    return ObolError("phone_codes_unavailable", text, retry_after_s=5, details=details)
