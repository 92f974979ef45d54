"""Obol: a usage-based-billing gateway. This page is the map.

A call's journey (`proxy/forward.py` tells it on one screen):

    client -> wire.credential -> billing.principals (cached) -> wire.target -> billing.pricing.ceiling
           (a path without a target: wire.dropin -> billing.catalogue, which provider has the model)
           -> ledger.wallets.hold        Redis trip 1
           -> proxy.upstream             bytes through; proxy.metering watches, proxy.rolling keeps the hold ahead
           -> ledger.wallets.settle      Redis trip 2, appends to the journal
    journal -> worker.flusher -> PostgreSQL

Packages, top to bottom; each imports only from those below it (a test holds this):

    app            composition root: routes, start-up
    drain          the end of a gateway process
    proxy          the gateway path; proxy.realtime its WebSockets
    api            the REST resources
    worker         the loops: flush, reap, grant, turn cycles, collect and charge, partition
    webhooks       what merchants are told: claimed, signed, sent, tried again (run by worker, above proxy and api)
    pages          the read-only dashboard, the hosted checkout
    local          embedded engines, supervisor, demo, fake provider
    billing        who pays, for what, how much
    ledger         live wallets in Redis: scripts, connection, journal
    cards          the only package that talks to a card processor: a sandbox, Stripe
    phones         codes that prove a phone number: a sandbox, Twilio Verify
    store          PostgreSQL: migrations, named queries, secrets
    prices, counting, providers   the price book, token counts, the provider table
    wire           PURE: formats, targets, credentials, metadata; translate: one dialect in another
    core           PURE: money, usage, meters, prices, SSE
    settings, errors, metrics, multiprocess, background, log, share, sockets      leaves
"""

__version__ = "0.1.0"
