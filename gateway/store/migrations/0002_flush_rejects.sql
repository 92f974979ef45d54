-- Journal entries whose request row could not be recorded, or which contradict what the ledger already holds.
-- Kept whole, so that an operator can repair by hand: nothing in the journal is dropped in silence, and nothing blocks it.
CREATE TABLE flush_rejects (
    reject_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    shard     integer NOT NULL,
    number    bigint NOT NULL,               -- of the entry within its shard's journal
    entry     bytea NOT NULL,                -- gateway.ledger.journal.Entry as JSON, its body in base64
    reason    text NOT NULL,
    at        timestamptz NOT NULL DEFAULT now()
);
