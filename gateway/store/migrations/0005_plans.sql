-- Plans with bundles and a Free plan, subscriptions that change and end, the turns of their cycles, test clocks.

ALTER TABLE plans
    ADD COLUMN is_free boolean NOT NULL DEFAULT false,          -- the one that customers without another are on
    ADD COLUMN default_auto_top_up_bundle_id text,              -- of new subscriptions
    ADD COLUMN unlinked_meters text NOT NULL DEFAULT 'refuse'   -- calls on a meter that is not linked, where any is
        CHECK (unlinked_meters IN ('refuse', 'allow')),
    ADD COLUMN archived_at timestamptz;                         -- nobody new; who is subscribed stays
CREATE UNIQUE INDEX plans_free ON plans (merchant_id) WHERE is_free AND deleted_at IS NULL;
CREATE INDEX plans_page ON plans (merchant_id, created_at DESC, plan_id DESC);
INSERT INTO plans (plan_id, merchant_id, name, period_amount_nano, included_credit_nano, overage, overage_cap_nano, is_free)
SELECT 'subconf_' || replace(gen_random_uuid()::text, '-', ''), merchant_id, 'Free', 0, 0, 'block', 0, true
FROM merchants;

CREATE TABLE credit_bundles (
    credit_bundle_id text PRIMARY KEY,
    plan_id          text NOT NULL REFERENCES plans,
    name             text NOT NULL,
    cost_nano        bigint NOT NULL CHECK (cost_nano >= 0),
    credit_nano      bigint NOT NULL CHECK (credit_nano > 0),
    created_at       timestamptz NOT NULL DEFAULT now(),
    deleted_at       timestamptz
);
CREATE INDEX credit_bundles_plan ON credit_bundles (plan_id, created_at DESC, credit_bundle_id DESC);

-- merchant_id is that of the connection; here for the search of what is due by a merchant's own clock.
-- The current cycle is number `cycle_number` from `anchor_at` (gateway/core/cycle.py); `turns` turns were made so far.
ALTER TABLE subscriptions
    ADD COLUMN merchant_id text REFERENCES merchants,
    ADD COLUMN anchor_at timestamptz,
    ADD COLUMN cycle_number integer NOT NULL DEFAULT 0,
    ADD COLUMN turns integer NOT NULL DEFAULT 1,
    ADD COLUMN auto_top_up_bundle_id text REFERENCES credit_bundles,
    ADD COLUMN pending_type text CHECK (pending_type IN ('cancellation', 'downgrade')),
    ADD COLUMN pending_plan_id text REFERENCES plans,
    ADD COLUMN pending_at timestamptz,
    ADD COLUMN can_charge boolean NOT NULL DEFAULT false,       -- a card is on file
    ADD COLUMN ended_at timestamptz;
UPDATE subscriptions s SET merchant_id = c.merchant_id, anchor_at = s.started_at
FROM connections c WHERE c.connection_id = s.connection_id;
CREATE INDEX subscriptions_due ON subscriptions (cycle_end_at) WHERE status = 'active';
CREATE INDEX subscriptions_due_of_merchant ON subscriptions (merchant_id, cycle_end_at) WHERE status = 'active';
CREATE INDEX subscriptions_page ON subscriptions (merchant_id, started_at DESC, subscription_id DESC);
CREATE INDEX subscriptions_page_of_status ON subscriptions (merchant_id, status, started_at DESC, subscription_id DESC);
CREATE INDEX subscriptions_connection ON subscriptions (connection_id, started_at DESC);
CREATE INDEX subscriptions_plan ON subscriptions (plan_id) WHERE status = 'active';

-- What the turn of a cycle does to a wallet. Written in the transaction that moves the subscription; applied in Redis
-- by its id, a wallet's in the order of turn_seq; the flusher sets applied_at in the transaction that records the entry.
CREATE TABLE turns (
    turn_id         text PRIMARY KEY,
    turn_seq        bigint GENERATED ALWAYS AS IDENTITY,
    merchant_id     text NOT NULL,
    wallet_id       text NOT NULL REFERENCES wallets,
    subscription_id text REFERENCES subscriptions,  -- null: a reset of meters of a customer without one
    number          integer NOT NULL,               -- of the subscription's turns, from 0; of a reset: of its month
    due_at          timestamptz NOT NULL,           -- in the merchant's time
    kind            text NOT NULL CHECK (kind IN ('start', 'renewal', 'upgrade', 'downgrade', 'end', 'reset')),
    keep_cycle      boolean NOT NULL,               -- what is left of the cycle's credit rolls over
    keep_bundle     boolean NOT NULL,
    credit_nano     bigint NOT NULL CHECK (credit_nano >= 0),
    limit_nano      bigint NOT NULL,                -- overage allowed from here on
    reset_meters    boolean NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    applied_at      timestamptz,
    UNIQUE (subscription_id, number)
);
CREATE INDEX turns_pending ON turns (turn_seq) WHERE applied_at IS NULL;
CREATE INDEX turns_pending_of_wallet ON turns (wallet_id, turn_seq) WHERE applied_at IS NULL;
CREATE INDEX turns_pending_of_merchant ON turns (merchant_id) WHERE applied_at IS NULL;

-- When the tier counters of customers without a subscription begin anew: monthly since their creation.
ALTER TABLE connections ADD COLUMN meters_reset_at timestamptz NOT NULL DEFAULT now() + interval '1 month';
UPDATE connections c
SET meters_reset_at = ((c.created_at AT TIME ZONE 'UTC') + (months.passed + 1) * interval '1 month') AT TIME ZONE 'UTC'
FROM (SELECT connection_id, (extract(year FROM age) * 12 + extract(month FROM age))::integer AS passed
      FROM (SELECT connection_id, age(now() AT TIME ZONE 'UTC', created_at AT TIME ZONE 'UTC') AS age
            FROM connections) ages) months
WHERE months.connection_id = c.connection_id;
CREATE INDEX connections_reset ON connections (meters_reset_at) WHERE deleted_at IS NULL;
CREATE INDEX connections_reset_of_merchant ON connections (merchant_id, meters_reset_at) WHERE deleted_at IS NULL;

-- How far a test merchant's time is ahead of real time.
CREATE TABLE test_clocks (
    merchant_id text PRIMARY KEY REFERENCES merchants,
    offset_us   bigint NOT NULL CHECK (offset_us >= 0),
    updated_at  timestamptz NOT NULL DEFAULT now()
);
