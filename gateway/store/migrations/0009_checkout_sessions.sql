-- What a merchant asked its customer to check out. The hosted page is not there yet: nothing sets completed_at.
-- The secret of a session is derived from the master key; its hash finds the session of a page's address.

CREATE TABLE checkout_sessions (
    checkout_session_id text PRIMARY KEY,
    merchant_id         text NOT NULL REFERENCES merchants,
    secret_hash         bytea NOT NULL UNIQUE,
    checkout_mode       text NOT NULL CHECK (checkout_mode IN ('onboarding', 'topup', 'subscription', 'credit_bundle')),
    origin_url          text NOT NULL,
    reference_id        text,
    connection_id       text REFERENCES connections,     -- of a returning customer; of a new one once completed
    plan_id             text REFERENCES plans,
    credit_bundle_id    text,
    created_at          timestamptz NOT NULL DEFAULT now(),
    expires_at          timestamptz NOT NULL,
    completed_at        timestamptz
);
CREATE INDEX checkout_sessions_page ON checkout_sessions (merchant_id, created_at DESC, checkout_session_id DESC);
