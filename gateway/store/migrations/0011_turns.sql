-- Turns beside older versions, their place among the grants of a wallet, and subscriptions of before cycles.

-- Table by table, each locked whole before its rows are touched, and in the order in which transactions take them:
-- otherwise one that has rows of a table and comes to write it would wait in a circle with this.

-- Subscriptions as versions of before cycles write them, which gave the customer its overage for a card on file.
LOCK TABLE subscriptions IN ACCESS EXCLUSIVE MODE;
CREATE FUNCTION subscription_without_merchant() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    SELECT c.merchant_id, NEW.started_at, c.overage_limit_nano > 0
    INTO NEW.merchant_id, NEW.anchor_at, NEW.can_charge
    FROM connections c WHERE c.connection_id = NEW.connection_id;
    RETURN NEW;
END $$;
CREATE TRIGGER subscriptions_without_merchant BEFORE INSERT ON subscriptions
    FOR EACH ROW WHEN (NEW.merchant_id IS NULL) EXECUTE FUNCTION subscription_without_merchant();
UPDATE subscriptions s
SET merchant_id = c.merchant_id, anchor_at = coalesce(s.anchor_at, s.started_at),
    can_charge = s.can_charge OR (s.status = 'active' AND c.overage_limit_nano > 0)
FROM connections c
WHERE c.connection_id = s.connection_id
  AND (s.merchant_id IS NULL OR s.anchor_at IS NULL
       OR (NOT s.can_charge AND s.status = 'active' AND c.overage_limit_nano > 0));
ALTER TABLE subscriptions ALTER COLUMN merchant_id SET NOT NULL, ALTER COLUMN anchor_at SET NOT NULL;

-- A downgrade without its plan could never be made.
UPDATE subscriptions SET pending_type = NULL, pending_at = NULL
WHERE pending_type = 'downgrade' AND pending_plan_id IS NULL;
ALTER TABLE subscriptions
    ADD CHECK ((pending_type IS NOT DISTINCT FROM 'downgrade') = (pending_plan_id IS NOT NULL));

-- Who records the entry of a turn confirms it in the same transaction, and has the meters begin anew. A flusher of
-- before cycles does neither: its batch is refused as a whole, and left to a worker that does both.
CREATE FUNCTION turn_is_confirmed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM turns WHERE turn_id = NEW.reference AND applied_at IS NULL) THEN
        RAISE EXCEPTION 'the entry of turn % is recorded and the turn is not confirmed: this worker is too old for it',
            NEW.reference USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER ledger_turns AFTER INSERT ON ledger_entries DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.kind = 'turn') EXECUTE FUNCTION turn_is_confirmed();

-- What is granted to the pots that turns let expire has its place among the turns of the wallet: one numbering for both.
-- Whoever writes either holds the lock of the connection. Grants of before come first.
ALTER TABLE grants ADD COLUMN turn_seq bigint NOT NULL DEFAULT 0;
ALTER TABLE grants ALTER COLUMN turn_seq SET DEFAULT nextval('turns_turn_seq_seq');
CREATE INDEX grants_pending_of_wallet ON grants (wallet_id, turn_seq) WHERE applied_at IS NULL;
