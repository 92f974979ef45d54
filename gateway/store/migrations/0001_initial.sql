-- The durable record. Amounts are nano-dollars (bigint), durations microseconds, times timestamptz (UTC).
-- Secrets are stored as SHA-256 only; those shown again are derived from the master key (gateway/store/secrets.py).

CREATE TABLE merchants (
    merchant_id             text PRIMARY KEY,
    account_id              text NOT NULL,           -- a merchant's live and test sides share an account
    mode                    text NOT NULL CHECK (mode IN ('live', 'test')),
    name                    text NOT NULL,
    refuse_without_customer boolean NOT NULL DEFAULT false,
    self_connection_id      text,
    self_meter_id           text,
    created_at              timestamptz NOT NULL DEFAULT now(),
    UNIQUE (account_id, mode)
);

CREATE TABLE secret_keys (
    secret_key_id   text PRIMARY KEY,
    merchant_id     text NOT NULL REFERENCES merchants,
    name            text NOT NULL,
    key_hash        bytea NOT NULL UNIQUE,
    secret_key_hint text NOT NULL,                   -- the last four characters
    created_at      timestamptz NOT NULL DEFAULT now(),
    revoked_at      timestamptz
);

CREATE TABLE meters (
    meter_id             text PRIMARY KEY,
    merchant_id          text NOT NULL REFERENCES merchants,
    meter_slug           text NOT NULL,
    secret_hash          bytea NOT NULL UNIQUE,
    name                 text NOT NULL,
    version              integer NOT NULL,
    definition           jsonb NOT NULL,             -- gateway.core.meter.Meter of this version
    created_at           timestamptz NOT NULL DEFAULT now(),
    deleted_at           timestamptz
);
CREATE UNIQUE INDEX meters_slug ON meters (merchant_id, meter_slug) WHERE deleted_at IS NULL;
CREATE INDEX meters_page ON meters (merchant_id, created_at DESC, meter_id DESC);

-- Every version a charge may name, kept for ever so that the charge can be recomputed.
CREATE TABLE meter_versions (
    meter_id   text NOT NULL REFERENCES meters,
    version    integer NOT NULL,
    definition jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (meter_id, version)
);

CREATE TABLE price_books (
    version    text PRIMARY KEY,
    content    bytea NOT NULL,                       -- gzip of PriceBook.to_json()
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE plans (
    plan_id              text PRIMARY KEY,
    merchant_id          text NOT NULL REFERENCES merchants,
    name                 text NOT NULL,
    period_amount_nano   bigint NOT NULL CHECK (period_amount_nano >= 0),
    included_credit_nano bigint NOT NULL CHECK (included_credit_nano >= 0),
    billing_interval     text NOT NULL DEFAULT 'month' CHECK (billing_interval IN ('day', 'week', 'month', 'year')),
    rollover_type        text NOT NULL DEFAULT 'none' CHECK (rollover_type IN ('full', 'none')),
    bundle_rollover_type text NOT NULL DEFAULT 'full' CHECK (bundle_rollover_type IN ('full', 'none')),
    overage              text NOT NULL DEFAULT 'charge' CHECK (overage IN ('charge', 'block')),
    overage_cap_nano     bigint CHECK (overage_cap_nano >= 0),    -- null: the setting of the installation
    created_at           timestamptz NOT NULL DEFAULT now(),
    deleted_at           timestamptz
);

CREATE TABLE plan_meters (
    plan_id  text NOT NULL REFERENCES plans,
    meter_id text NOT NULL REFERENCES meters,
    PRIMARY KEY (plan_id, meter_id)
);

-- One wallet a connection. Redis holds the live balance; this row and ledger_entries are its durable twin,
-- written by the flusher only.
CREATE TABLE wallets (
    wallet_id    text PRIMARY KEY,
    merchant_id  text NOT NULL REFERENCES merchants,
    shard        integer NOT NULL,
    last_seq     bigint NOT NULL DEFAULT 0,
    cycle_nano   bigint NOT NULL DEFAULT 0,
    bundle_nano  bigint NOT NULL DEFAULT 0,
    prepaid_nano bigint NOT NULL DEFAULT 0,
    overage_nano bigint NOT NULL DEFAULT 0,
    created_at   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE connections (
    connection_id      text PRIMARY KEY,
    merchant_id        text NOT NULL REFERENCES merchants,
    wallet_id          text NOT NULL UNIQUE REFERENCES wallets,
    secret_hash        bytea NOT NULL UNIQUE,
    reference_id       text,
    is_self            boolean NOT NULL DEFAULT false,
    phone              text NOT NULL DEFAULT '',
    email              text NOT NULL DEFAULT '',
    first_name         text NOT NULL DEFAULT '',
    last_name          text NOT NULL DEFAULT '',
    metadata           jsonb,
    overage_limit_nano bigint NOT NULL DEFAULT 0,    -- -1: without limit (the merchant's own wallet)
    disabled_at        timestamptz,
    created_at         timestamptz NOT NULL DEFAULT now(),
    deleted_at         timestamptz
);
CREATE UNIQUE INDEX connections_reference ON connections (merchant_id, reference_id)
    WHERE deleted_at IS NULL AND reference_id IS NOT NULL;
CREATE INDEX connections_page ON connections (merchant_id, created_at DESC, connection_id DESC);

CREATE TABLE subscriptions (
    subscription_id text PRIMARY KEY,
    connection_id   text NOT NULL REFERENCES connections,
    plan_id         text NOT NULL REFERENCES plans,
    status          text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'cancelled')),
    started_at      timestamptz NOT NULL,
    cancelled_at    timestamptz,
    cycle_start_at  timestamptz NOT NULL,
    cycle_end_at    timestamptz NOT NULL
);
CREATE UNIQUE INDEX subscriptions_active ON subscriptions (connection_id) WHERE status = 'active';

-- Credit that is owed to a wallet. Written first; applied in Redis by its id; the flusher sets applied_at in the
-- transaction that records the ledger entry, so a crash in between only makes the worker apply it again, in vain.
CREATE TABLE grants (
    grant_id    text PRIMARY KEY,
    wallet_id   text NOT NULL REFERENCES wallets,
    pot         text NOT NULL CHECK (pot IN ('cycle', 'bundle', 'prepaid', 'overage')),
    amount_nano bigint NOT NULL CHECK (amount_nano > 0),
    reason      text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    applied_at  timestamptz
);
CREATE INDEX grants_pending ON grants (created_at) WHERE applied_at IS NULL;

-- Every movement of a wallet, in its order. The deltas of a wallet add up to its pots (I1).
CREATE TABLE ledger_entries (
    wallet_id     text NOT NULL,
    seq           bigint NOT NULL,
    at            timestamptz NOT NULL,
    kind          text NOT NULL,
    reference     text NOT NULL,                     -- request id or grant id
    cycle_delta   bigint NOT NULL,
    bundle_delta  bigint NOT NULL,
    prepaid_delta bigint NOT NULL,
    overage_delta bigint NOT NULL,
    PRIMARY KEY (wallet_id, seq)
);

-- One row a (merchant, request id), for ever: the idempotency of charges and the way to the partition of the row.
CREATE TABLE request_index (
    merchant_id text NOT NULL,
    request_id  text NOT NULL,
    created_at  timestamptz NOT NULL,
    fingerprint text,                                -- of a reported request's payload; null for gateway calls
    PRIMARY KEY (merchant_id, request_id)
);

CREATE TABLE requests (
    merchant_id           text NOT NULL,
    request_id            text NOT NULL,
    created_at            timestamptz NOT NULL,
    connection_id         text,
    wallet_id             text NOT NULL,
    meter_id              text,
    meter_version         integer,
    price_version         text,
    billing_mode          text NOT NULL,             -- customer, meter_only, merchant, billing_disabled, report
    provider              text NOT NULL,
    provider_key_type     text NOT NULL,             -- managed, unmanaged
    model                 text,
    endpoint              text NOT NULL,             -- "POST https://..."; "" for a reported request
    response_id           text,
    service_tier          text,                      -- as the provider named it; part of the price
    status                text NOT NULL CHECK (status IN ('completed', 'error')),
    ending                text NOT NULL,             -- how the call ended: gateway/proxy/ending.py
    http_status           integer,
    streamed              boolean NOT NULL DEFAULT false,
    estimated             boolean NOT NULL DEFAULT false,
    usage                 jsonb NOT NULL,            -- gateway.core.usage.Usage, as it was priced
    input_cost_nano       bigint NOT NULL DEFAULT 0,
    output_cost_nano      bigint NOT NULL DEFAULT 0,
    cost_nano             bigint NOT NULL DEFAULT 0,
    fee_nano              bigint NOT NULL DEFAULT 0,
    charge_nano           bigint NOT NULL DEFAULT 0,
    tier_position         bigint NOT NULL DEFAULT 0, -- units of the meter used before this request in its cycle
    metadata              jsonb NOT NULL DEFAULT '{}',
    duration_us           bigint,
    first_byte_us         bigint
) PARTITION BY RANGE (created_at);
CREATE TABLE requests_default PARTITION OF requests DEFAULT;
CREATE INDEX requests_key ON requests (merchant_id, request_id);
CREATE INDEX requests_page ON requests (merchant_id, created_at DESC, request_id DESC);
CREATE INDEX requests_connection ON requests (merchant_id, connection_id, created_at DESC, request_id DESC);
CREATE INDEX requests_meter ON requests (merchant_id, meter_id, created_at DESC, request_id DESC);
CREATE INDEX requests_metadata ON requests USING gin (metadata jsonb_path_ops);

-- Roll-ups by hour, added to in the transaction that inserts the rows.
CREATE TABLE usage_hourly (
    merchant_id   text NOT NULL,
    hour          timestamptz NOT NULL,
    connection_id text NOT NULL,                     -- "" where there is none
    meter_id      text NOT NULL,                     -- "" where there is none
    requests      bigint NOT NULL,
    tokens        bigint NOT NULL,
    cost_nano     bigint NOT NULL,
    fee_nano      bigint NOT NULL,
    charge_nano   bigint NOT NULL,
    PRIMARY KEY (merchant_id, hour, connection_id, meter_id)
);

-- How far each shard's journal has been flushed. Moved in the transaction that records the entries.
CREATE TABLE journal_cursors (
    shard      integer PRIMARY KEY,
    last_id    bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now()
);
