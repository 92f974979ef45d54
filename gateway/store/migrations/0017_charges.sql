-- Money in: who pays and with which card, what was charged, and the wallets that the collector has to look at.
-- Nothing here hinders the version before: it writes wallets and turns as it did, and the triggers see to the rest.

-- Who pays. One for a phone number and mode, with connections at any number of merchants. The hash is keyed, because
-- numbers are few enough to be tried; the number itself is sealed (gateway/store/sealed.py).
CREATE TABLE payers (
    payer_id     text PRIMARY KEY,
    mode         text NOT NULL CHECK (mode IN ('live', 'test')),
    phone_hash   bytea NOT NULL,
    phone_sealed bytea NOT NULL,
    email        text NOT NULL DEFAULT '',
    first_name   text NOT NULL DEFAULT '',
    last_name    text NOT NULL DEFAULT '',
    created_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (mode, phone_hash)
);
ALTER TABLE connections ADD COLUMN payer_id text REFERENCES payers;
CREATE INDEX connections_payer ON connections (payer_id) WHERE payer_id IS NOT NULL;

-- Cards, as the processor names them.
CREATE TABLE payment_methods (
    payment_method_id text PRIMARY KEY,
    payer_id          text NOT NULL REFERENCES payers,
    processor         text NOT NULL,
    customer_ref      text NOT NULL,
    method_ref        text NOT NULL,
    brand             text NOT NULL,
    last4             text NOT NULL,
    exp_month         integer NOT NULL,
    exp_year          integer NOT NULL,
    is_default        boolean NOT NULL,
    added_at          timestamptz NOT NULL DEFAULT now(),
    removed_at        timestamptz
);
CREATE UNIQUE INDEX payment_methods_default ON payment_methods (payer_id) WHERE is_default AND removed_at IS NULL;
CREATE UNIQUE INDEX payment_methods_known ON payment_methods (payer_id, processor, method_ref)
    WHERE removed_at IS NULL;
CREATE INDEX payment_methods_ref ON payment_methods (processor, method_ref) WHERE removed_at IS NULL;

-- What is charged to a card: written before the processor is called, its id the processor's idempotency key and the id
-- of the grant that is written when it succeeds. Amount and grant never change. `attempt` is the try at the card that
-- is under way, or was last; times are real.
CREATE TABLE charges (
    charge_id        text PRIMARY KEY,
    merchant_id      text NOT NULL REFERENCES merchants,
    connection_id    text NOT NULL REFERENCES connections,
    wallet_id        text NOT NULL REFERENCES wallets,
    kind             text NOT NULL
        CHECK (kind IN ('overage', 'auto_top_up', 'renewal', 'subscription', 'upgrade', 'bundle', 'topup')),
    amount_cents     bigint NOT NULL CHECK (amount_cents > 0),
    currency         text NOT NULL DEFAULT 'usd',
    owed_nano        bigint NOT NULL CHECK (owed_nano >= 0),        -- what it was made for
    pot              text CHECK (pot IN ('bundle', 'prepaid', 'overage')),    -- null: it buys no credit by itself
    credit_nano      bigint NOT NULL CHECK (credit_nano >= 0),
    credit_bundle_id text REFERENCES credit_bundles,
    plan_id          text REFERENCES plans,
    description      text NOT NULL,
    mode             text NOT NULL CHECK (mode IN ('live', 'test')),
    processor        text NOT NULL,
    customer_ref     text NOT NULL,
    method_ref       text NOT NULL,
    status           text NOT NULL DEFAULT 'open'
        CHECK (status IN ('open', 'succeeded', 'declined', 'canceled', 'refunded')),
    attempt          integer NOT NULL DEFAULT 1,
    attempt_at       timestamptz NOT NULL DEFAULT now(),            -- when this attempt was written
    asked            integer NOT NULL DEFAULT 0,                    -- how often the processor was asked about it
    sent_at          timestamptz,                                   -- when it was last sent; null: it never was
    next_attempt_at  timestamptz NOT NULL DEFAULT now(),            -- while open: when to ask, or to send
    processor_ref    text,
    decline_code     text,
    refunded_cents   bigint NOT NULL DEFAULT 0 CHECK (refunded_cents BETWEEN 0 AND amount_cents),
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    CHECK ((pot IS NULL) = (credit_nano = 0))
);
-- At most one a wallet under way; and of those that are tried again by themselves one that waits for its next attempt:
-- nobody is asked twice for one debt.
CREATE UNIQUE INDEX charges_open ON charges (wallet_id) WHERE status = 'open';
CREATE UNIQUE INDEX charges_retried ON charges (wallet_id)
    WHERE status = 'declined' AND kind IN ('overage', 'auto_top_up');
CREATE INDEX charges_due ON charges (next_attempt_at) WHERE status = 'open';
CREATE INDEX charges_open_of_payer ON charges (customer_ref, charge_id) WHERE status = 'open';
CREATE INDEX charges_connection ON charges (connection_id, created_at DESC, charge_id DESC);

CREATE TABLE refunds (
    refund_id     text PRIMARY KEY,
    charge_id     text NOT NULL REFERENCES charges,
    amount_cents  bigint NOT NULL CHECK (amount_cents > 0),
    reason        text NOT NULL DEFAULT '',
    status        text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'succeeded', 'failed')),
    processor_ref text,
    failure       text,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX refunds_charge ON refunds (charge_id);

-- Wallets that the collector has to look at, and when, in the merchant's time. A limited one stays in it: its card was
-- declined, so it may owe nothing more until it has paid. 'infinity': something else has to happen first.
CREATE TABLE collections (
    wallet_id   text PRIMARY KEY REFERENCES wallets,
    merchant_id text NOT NULL REFERENCES merchants,
    due_at      timestamptz NOT NULL,
    cycle_ended boolean NOT NULL DEFAULT false,      -- its overage is due, however little
    declines    integer NOT NULL DEFAULT 0,          -- in a row, of one card
    limited_at  timestamptz                          -- of the first of them; null: not limited
);
CREATE INDEX collections_due ON collections (due_at);
CREATE INDEX collections_due_of_merchant ON collections (merchant_id, due_at);

-- A wallet is handed to the collector when its pots less its overage have come down to `collect_at_nano`, which the
-- collector sets anew when it has looked. Null: it is not watched. So the flusher pays for a comparison only.
ALTER TABLE wallets ADD COLUMN collect_at_nano bigint;

CREATE FUNCTION collections_watch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO collections (wallet_id, merchant_id, due_at) VALUES (NEW.wallet_id, NEW.merchant_id, '-infinity')
    ON CONFLICT (wallet_id) DO UPDATE
    SET due_at = CASE WHEN collections.limited_at IS NULL THEN excluded.due_at ELSE collections.due_at END;
    NEW.collect_at_nano := NULL;
    RETURN NEW;
END $$;
CREATE TRIGGER wallets_watched BEFORE UPDATE ON wallets FOR EACH ROW
    WHEN (NEW.cycle_nano + NEW.bundle_nano + NEW.prepaid_nano - NEW.overage_nano <= NEW.collect_at_nano)
    EXECUTE FUNCTION collections_watch();

-- A kind of turn that moves nothing but the overage limit: when a card is declined, and when the debt is paid.
ALTER TABLE turns DROP CONSTRAINT turns_kind_check;
ALTER TABLE turns ADD CONSTRAINT turns_kind_check
    CHECK (kind IN ('start', 'renewal', 'upgrade', 'downgrade', 'end', 'reset', 'limit')) NOT VALID;

-- The turn of a cycle: what is owed is due, and what the plan allows may be another. Only of customers with somebody who pays.
CREATE FUNCTION collections_turned() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO collections (wallet_id, merchant_id, due_at, cycle_ended)
    SELECT NEW.wallet_id, NEW.merchant_id, NEW.due_at, NEW.kind <> 'start' FROM connections c
    WHERE c.wallet_id = NEW.wallet_id AND c.payer_id IS NOT NULL
    ON CONFLICT (wallet_id) DO UPDATE
    SET due_at = CASE WHEN collections.limited_at IS NULL THEN excluded.due_at ELSE collections.due_at END,
        cycle_ended = collections.cycle_ended OR excluded.cycle_ended;
    RETURN NULL;
END $$;
CREATE TRIGGER turns_collected AFTER INSERT ON turns FOR EACH ROW WHEN (NEW.kind NOT IN ('reset', 'limit'))
    EXECUTE FUNCTION collections_turned();

-- A bundle that is to be bought, or none any more: the wallet's mark is another.
CREATE FUNCTION collections_topped_up() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO collections (wallet_id, merchant_id, due_at)
    SELECT c.wallet_id, c.merchant_id, '-infinity' FROM connections c
    WHERE c.connection_id = NEW.connection_id AND c.payer_id IS NOT NULL
    ON CONFLICT (wallet_id) DO UPDATE
    SET due_at = CASE WHEN collections.limited_at IS NULL THEN excluded.due_at ELSE collections.due_at END;
    RETURN NULL;
END $$;
CREATE TRIGGER subscriptions_topped_up AFTER UPDATE OF auto_top_up_bundle_id ON subscriptions FOR EACH ROW
    WHEN (NEW.auto_top_up_bundle_id IS DISTINCT FROM OLD.auto_top_up_bundle_id)
    EXECUTE FUNCTION collections_topped_up();
