"""What checkouts, and what hears card processors, are made of: opened and closed together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from gateway.billing.accounts import Accounts
from gateway.billing.charges import Charges
from gateway.billing.checkout import Checkouts
from gateway.billing.checkout_payment import Payment
from gateway.billing.checkout_reading import CheckoutReader
from gateway.billing.payers import Payers
from gateway.billing.principals import Principals
from gateway.billing.processor_events import ProcessorEvents
from gateway.billing.purchases import Purchases
from gateway.billing.subscriptions import Subscriptions
from gateway.billing.turns import Turns
from gateway.cards import choice as cards_choice
from gateway.ledger.wallets import Wallets
from gateway.phones import choice as phones_choice
from gateway.settings import Settings
from gateway.store.postgres import Store
from gateway.store.sealed import Sealed
from gateway.store.secrets import Derived


@asynccontextmanager
async def opened(
    store: Store,
    wallets: Wallets,
    principals: Principals,
    settings: Settings,
    sealed: Sealed,
    reached: Callable[[str], None],
) -> AsyncIterator[tuple[Checkouts, ProcessorEvents]]:
    """With the card processors and senders of codes that the settings name. `reached`: the fail points."""
    cap_nano, derived = settings.overage_cap_nano, Derived(settings.master_key)
    payers = Payers(store, derived, sealed)
    async with cards_choice.opened(settings, store) as cards, phones_choice.opened(settings, store) as phones:
        charges = Charges(
            store,
            wallets,
            overage_cap_nano=cap_nano,
            retry_days=settings.charge_retry_days,
            changed=principals.changed,
        )
        payment = Payment(
            store,
            CheckoutReader(store, payers, sealed),
            Accounts(store, wallets, derived, shards=settings.ledger_shards),
            charges,
            Purchases(store, Subscriptions(store, wallets, overage_cap_nano=cap_nano)),
            Turns(store, wallets),
            cards,
            principals,
            charge_timeout_ms=settings.charge_timeout_ms,
            reached=reached,
        )
        checkouts = Checkouts(store, payers, payment, cards, phones, sealed, derived)
        yield checkouts, ProcessorEvents(store, cards, charges, payers)
