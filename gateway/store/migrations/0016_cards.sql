-- What the sandbox of the card processors and the sandbox of the phone codes remember, so that they tell the truth after a
-- kill. Real processors keep these records themselves. No card number is here, and no phone number in clear.

CREATE TABLE sandbox_setups (
    setup_ref    text PRIMARY KEY,
    customer_ref text NOT NULL,
    status       text NOT NULL CHECK (status IN ('pending', 'requires_action', 'declined', 'succeeded')),
    method_ref   text,                               -- of the card entered last; it carries the card's behaviour
    decline_code text,
    detached_at  timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX sandbox_setups_method ON sandbox_setups (method_ref) WHERE method_ref IS NOT NULL;

-- One row an attempt. Of the attempts of a charge one may succeed.
CREATE TABLE sandbox_charges (
    charge_id     text NOT NULL,
    attempt       integer NOT NULL,
    processor_ref text NOT NULL UNIQUE,
    customer_ref  text NOT NULL,
    method_ref    text NOT NULL,
    amount_cents  bigint NOT NULL,
    currency      text NOT NULL,
    status        text NOT NULL CHECK (status IN ('succeeded', 'declined', 'requires_action')),
    decline_code  text,
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (charge_id, attempt)
);
CREATE UNIQUE INDEX sandbox_charges_once ON sandbox_charges (charge_id) WHERE status = 'succeeded';

CREATE TABLE sandbox_refunds (
    refund_id     text PRIMARY KEY,
    processor_ref text NOT NULL REFERENCES sandbox_charges (processor_ref),
    amount_cents  bigint NOT NULL CHECK (amount_cents > 0),
    created_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX sandbox_refunds_charge ON sandbox_refunds (processor_ref);

CREATE TABLE sandbox_phone_codes (
    phone_hash bytea PRIMARY KEY,                    -- SHA-256, which hides a number only from a glance: rows live ten minutes
    code       text NOT NULL,                        -- it stands in the log as well: that is how it is delivered
    checks     integer NOT NULL DEFAULT 0,
    expires_at timestamptz NOT NULL
);
CREATE INDEX sandbox_phone_codes_expired ON sandbox_phone_codes (expires_at);
