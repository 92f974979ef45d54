-- Webhooks: endpoints, and the outbox of what they are told, which is their delivery log afterwards.

-- At most three a merchant. The secret is derived from the master key, the id and `secret_number`.
CREATE TABLE webhooks (
    webhook_id        text PRIMARY KEY,
    merchant_id       text NOT NULL REFERENCES merchants,
    name              text NOT NULL,
    url               text NOT NULL,
    status            text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'paused')),
    paused_reason     text CHECK (paused_reason IN ('merchant', 'gone', 'failing')),
    signature_style   text NOT NULL DEFAULT 'default' CHECK (signature_style IN ('default', 'timestamped')),
    event_style       text NOT NULL DEFAULT 'connection' CHECK (event_style IN ('connection', 'customer')),
    events            text[],                          -- null: all
    secret_number     integer NOT NULL DEFAULT 1,      -- advanced by each rotation
    secret_rotated_at timestamptz,
    failing_since     timestamptz,                     -- of the first failure since the last success
    created_at        timestamptz NOT NULL DEFAULT now(),
    deleted_at        timestamptz
);
CREATE INDEX webhooks_merchant ON webhooks (merchant_id, created_at DESC, webhook_id DESC) WHERE deleted_at IS NULL;

-- One row an event and endpoint. `body` is written when it is first sent, and the same from then on.
CREATE TABLE webhook_deliveries (
    sequence         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id         text NOT NULL,
    webhook_id       text NOT NULL,
    merchant_id      text NOT NULL,
    connection_id    text NOT NULL,
    event            text NOT NULL,                    -- as the connection style names it
    data             jsonb,                            -- what is told besides the connection
    created_at       timestamptz NOT NULL DEFAULT now(),
    status           text NOT NULL DEFAULT 'waiting' CHECK (status IN ('waiting', 'delivered', 'dead')),
    open             boolean NOT NULL DEFAULT true,    -- not taken up yet: a further change of the balance needs no row
    body             text,
    due_at           timestamptz NOT NULL,
    attempts         integer NOT NULL DEFAULT 0,
    first_attempt_at timestamptz,
    last_attempt_at  timestamptz,
    last_status_code integer,                          -- null: there was no answer
    last_error       text,
    finished_at      timestamptz
);
CREATE UNIQUE INDEX webhook_deliveries_event ON webhook_deliveries (webhook_id, event_id);
CREATE INDEX webhook_deliveries_page ON webhook_deliveries (webhook_id, created_at DESC, event_id DESC);
CREATE INDEX webhook_deliveries_finished ON webhook_deliveries (finished_at) WHERE status <> 'waiting';
CREATE INDEX webhook_deliveries_waiting ON webhook_deliveries (webhook_id, connection_id, sequence)
    WHERE status = 'waiting';
CREATE UNIQUE INDEX webhook_deliveries_open ON webhook_deliveries (webhook_id, connection_id)
    WHERE event = 'connection.wallet.balance.updated' AND status = 'waiting' AND open;

-- One row an endpoint and customer for whom something waits. It is what workers claim, so that a customer's events
-- go one after the other, and so that a claim never looks at the events behind the first one.
CREATE TABLE webhook_lanes (
    webhook_id    text NOT NULL,
    connection_id text NOT NULL,
    due_at        timestamptz NOT NULL,                -- while claimed: when the claim comes back
    claim         uuid,
    PRIMARY KEY (webhook_id, connection_id)
);
CREATE INDEX webhook_lanes_due ON webhook_lanes (webhook_id, due_at);
