"""When a call is made again, and when."""

from __future__ import annotations

import random

from obol_sdk.errors import ApiError, ConnectionFailedError, ObolError

STATUSES = frozenset({429, 502, 503, 504})
UNDER_WAY = "request_in_progress"
"""The code of the 409 while another call with the same idempotency key runs: mostly the one whose answer was lost."""
FIRST_DELAY_S = 0.25
DELAY_MAX_S = 8.0
RETRY_AFTER_MAX_S = 30


def delay_s(error: ObolError, attempt: int, *, repeatable: bool) -> float | None:
    """How long to wait before attempt number `attempt` + 1 (the first is 1); None: what happened is final.

    A refusal for the time being can be repeated as soon as the server says; so can what may or may not have happened,
    if the call is such that a second one does no more than the first.
    """
    if not repeatable:
        return None
    after: int | None = None
    if isinstance(error, ApiError):
        after = error.retry_after_s
        passing = error.status in STATUSES or error.code == UNDER_WAY
        if not passing or (after or 0) > RETRY_AFTER_MAX_S:
            return None
    elif not isinstance(error, ConnectionFailedError):
        return None
    backoff: float = min(FIRST_DELAY_S * 2 ** (attempt - 1), DELAY_MAX_S)
    # Spread, so that those who failed together do not come back together.
    return max(float(after or 0), backoff * (0.5 + random.random() / 2))  # noqa: S311
