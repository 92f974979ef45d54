"""What every handler of the API works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from gateway.api.versions import MeterVersions
from gateway.billing.catalogue import Offer
from gateway.billing.checkout import Checkouts
from gateway.billing.principals import Merchant, Principals
from gateway.billing.processor_events import ProcessorEvents
from gateway.billing.spend_keys import SpendCounters
from gateway.errors import ObolError
from gateway.ledger.bound import JournalBound
from gateway.ledger.journal import Journal
from gateway.ledger.wallets import Wallets
from gateway.prices import Book
from gateway.settings import Settings
from gateway.store.postgres import Store
from gateway.store.sealed import Sealed
from gateway.store.secrets import Derived
from gateway.wire import credential


@dataclass(slots=True)
class ApiContext:
    """The parts the composition root made, and the cache of meter versions that is the API's own."""

    store: Store
    wallets: Wallets
    journal: Journal
    principals: Principals
    settings: Settings
    derived: Derived
    journals: JournalBound
    offers: Callable[[], tuple[Offer, ...]] | None = None
    """Every model on offer; may take long. None where this process serves no calls."""
    book: Callable[[], Book] | None = None
    """The installation's prices, as they are now. None where this process serves no calls."""
    webhook_addresses: Callable[[str, int], Awaitable[object]] | None = None
    """Resolves the host and port of a webhook endpoint; raises the ObolError `forward_target_invalid` where it has an
    address that no webhook may go to. None where nobody can tell."""
    spend_counters: SpendCounters | None = None
    sealed: Sealed | None = None
    """Seals merchants' keys of providers. Both are None where this process serves no calls."""
    provider_names: tuple[str, ...] = ()
    checkouts: Checkouts | None = None
    processor_events: ProcessorEvents | None = None
    """Both are None where this process serves no pages."""
    meter_versions: MeterVersions = field(init=False)

    def __post_init__(self) -> None:
        self.meter_versions = MeterVersions(self.store)

    async def merchant(self, request: web.Request) -> Merchant:
        """The merchant whose secret key the request carries. Raise ObolError `unauthorized`."""
        return await self.principals.merchant(_secret_key(request))


def _secret_key(request: web.Request) -> str:
    """Of `Authorization: Bearer`, else of an API key header."""
    try:
        text = credential.find(request.headers.get)
    except ObolError:
        raise _unauthorized("the request has no secret key") from None
    return secret_key_form(text)


def secret_key_form(text: str) -> str:
    """`text`, if it could be a secret key. Raise ObolError `unauthorized`."""
    if not text.startswith(credential.SECRET_KEY_PREFIX) or "." in text:
        raise _unauthorized(
            "the credential is not a secret key; forward tokens and spend keys are for the gateway routes"
        )
    if len(text) > credential.MAX_FIELD_CHARACTERS or not (text.isascii() and text.isprintable()):
        raise _unauthorized("the secret key is too long or has a character outside printable ASCII")
    return text


def _unauthorized(what: str) -> ObolError:
    return ObolError("unauthorized", f"{what}: send Authorization: Bearer aks_...", param="authorization")
