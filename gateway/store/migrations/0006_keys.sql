-- Spend keys with what they spent, wallet keys, providers' keys stored by a merchant.

-- Key and secrets as SHA-256 only. The limits in nano-dollars and requests; a cycle by UTC in the merchant's time.
CREATE TABLE spend_keys (
    spend_key_id        text PRIMARY KEY,
    merchant_id         text NOT NULL REFERENCES merchants,
    wallet_id           text NOT NULL REFERENCES wallets,
    connection_id       text NOT NULL REFERENCES connections,  -- whose wallet it is
    meter_id            text REFERENCES meters,                -- null: the customer pays what a call cost
    name                text NOT NULL,
    key_hash            bytea NOT NULL UNIQUE,
    key_hint            text NOT NULL,                         -- the first characters of the key
    status              text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'paused')),
    request_shape       text NOT NULL DEFAULT 'openai' CHECK (request_shape IN ('openai', 'anthropic')),
    allowed_models      text[] CHECK (cardinality(allowed_models) > 0),
    allowed_providers   text[] CHECK (cardinality(allowed_providers) > 0),
    spend_limit_nano    bigint CHECK (spend_limit_nano >= 0),
    spend_limit_cycle   text CHECK (spend_limit_cycle IN ('daily', 'weekly', 'monthly', 'total')),
    request_limit       bigint CHECK (request_limit >= 0),
    request_limit_cycle text CHECK (request_limit_cycle IN ('daily', 'weekly', 'monthly', 'total')),
    requests_per_minute integer CHECK (requests_per_minute > 0),
    requests_burst      integer CHECK (requests_burst > 0),
    expires_at          timestamptz,
    created_at          timestamptz NOT NULL DEFAULT now(),
    revoked_at          timestamptz,
    CHECK ((spend_limit_nano IS NULL) = (spend_limit_cycle IS NULL)),
    CHECK ((request_limit IS NULL) = (request_limit_cycle IS NULL))
);
CREATE INDEX spend_keys_page ON spend_keys (merchant_id, created_at DESC, spend_key_id DESC) WHERE revoked_at IS NULL;
CREATE INDEX spend_keys_wallet ON spend_keys (wallet_id);

-- The durable twin of a spend key's counters, by day since 1970 in the merchant's time. Written by the flusher only.
CREATE TABLE spend_key_days (
    spend_key_id text NOT NULL,
    day          integer NOT NULL,
    spent_nano   bigint NOT NULL,
    requests     bigint NOT NULL,
    last_used_at timestamptz NOT NULL,
    PRIMARY KEY (spend_key_id, day)
);

ALTER TABLE requests ADD COLUMN spend_key_id text;

CREATE TABLE wallet_keys (
    wallet_key_id text PRIMARY KEY,
    merchant_id   text NOT NULL REFERENCES merchants,
    wallet_id     text NOT NULL REFERENCES wallets,
    connection_id text NOT NULL REFERENCES connections,
    name          text NOT NULL,
    key_hash      bytea NOT NULL UNIQUE,
    key_hint      text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    last_used_at  timestamptz,
    revoked_at    timestamptz
);
CREATE INDEX wallet_keys_page ON wallet_keys (merchant_id, created_at DESC, wallet_key_id DESC)
    WHERE revoked_at IS NULL;
CREATE INDEX secret_keys_page ON secret_keys (merchant_id, created_at DESC, secret_key_id DESC)
    WHERE revoked_at IS NULL;

-- A merchant's own keys of providers, sealed (gateway/store/sealed.py): none can be read without the master key.
CREATE TABLE provider_keys (
    merchant_id text NOT NULL REFERENCES merchants,
    provider    text NOT NULL,
    sealed      bytea NOT NULL,
    key_hint    text NOT NULL,                       -- the last four characters
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, provider)
);
