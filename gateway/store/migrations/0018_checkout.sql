-- How far the customer of a checkout session has come (gateway/billing/checkout.py). What step comes next follows from
-- what is here and is not kept. Until its checkout is complete a new customer is hidden: deleted_at = 'infinity'.

CREATE TABLE checkouts (
    checkout_session_id text PRIMARY KEY REFERENCES checkout_sessions,
    phone_sealed        bytea,                           -- the number that a code was sent to; sealed with the session's id
    codes_sent          integer NOT NULL DEFAULT 0,
    codes_wrong         integer NOT NULL DEFAULT 0,
    code_sent_at        timestamptz,
    payer_id            text REFERENCES payers,          -- whose phone was proven
    proof_hash          bytea,                           -- SHA-256 of the cookie of the browser that proved it
    proof_until         timestamptz,
    wants_card          boolean NOT NULL DEFAULT false,  -- another one than the card on file
    setup_id            text,                            -- of the card that is being added
    setup_processor     text,
    setup_waits         boolean NOT NULL DEFAULT false,  -- the bank asks the customer about it
    customer_ref        text,                            -- the payer, as that processor names it
    connection_id       text REFERENCES connections,
    charge_id           text REFERENCES charges,         -- the last one
    payments            integer NOT NULL DEFAULT 0,      -- how often it was tried to charge a card
    charge_action       text,                            -- what the browser needs to have it authenticated
    updated_at          timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX checkouts_charge ON checkouts (charge_id) WHERE charge_id IS NOT NULL;

-- Codes that were sent, for an hour: a phone gets few, whoever asks for them.
CREATE TABLE checkout_codes (
    phone_hash bytea NOT NULL,                           -- keyed, as in payers
    sent_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX checkout_codes_phone ON checkout_codes (phone_hash, sent_at);
CREATE INDEX checkout_codes_sent ON checkout_codes (sent_at);
