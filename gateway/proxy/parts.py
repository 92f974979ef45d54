"""What a gateway is made of, put together in `gateway/app.py`."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gateway.background import Background
from gateway.billing.catalogue import Catalogue
from gateway.billing.pricing import Pricing
from gateway.billing.principals import Principals
from gateway.billing.spend_keys import SpendCounters
from gateway.counting import Counter
from gateway.failpoints import FailPoints
from gateway.ledger.bound import JournalBound
from gateway.ledger.connection import Connection
from gateway.ledger.kept import Kept
from gateway.ledger.row import RequestIds
from gateway.ledger.wallets import Wallets
from gateway.metrics import Metrics
from gateway.providers import Provider, Providers
from gateway.proxy.call import Call
from gateway.proxy.http_client import Timeouts
from gateway.proxy.limits import CallLimits
from gateway.proxy.upstream import Origin, Upstream
from gateway.settings import Settings
from gateway.wire.contract import Format
from gateway.wire.target import Target


class Parts(msgspec.Struct, kw_only=True):
    """Shared by every call of a process. `pricing` is replaced when the price book changes."""

    settings: Settings
    providers: Providers
    principals: Principals
    pricing: Pricing
    catalogue: Catalogue
    ledger: Connection
    wallets: Wallets
    kept: Kept
    spend_counters: SpendCounters
    upstream: Upstream
    counter: Counter
    metrics: Metrics
    background: Background
    origins: dict[str, Origin]
    """Where the traffic of an origin goes instead (OBOL_UPSTREAM_MAP; test mode only)."""
    routes: dict[tuple[str, str], tuple[Target[Provider], Format]]
    """Request lines seen, resolved."""
    request_ids: RequestIds
    timeouts: Timeouts
    journals: JournalBound
    managed_keys: Mapping[str, str]
    """The installation's own key for a provider, by the provider's name."""
    live: set[Call]
    """Calls whose hold is open: under way, or not yet acknowledged as settled."""
    limits: CallLimits
    fail: FailPoints | None = None
    """Where to kill whom; test mode only."""
    draining: bool = False
    """This process ends: it takes on nothing new, and says `Connection: close` with each answer that begins."""

    @property
    def claim_ttl_s(self) -> int:
        """An idempotency key whose gateway died is free again once its call must have ended."""
        return self.settings.request_timeout_s + self.settings.hold_ttl_s
