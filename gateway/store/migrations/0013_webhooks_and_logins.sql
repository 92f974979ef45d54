-- Webhooks: what of the log was not delivered is found without the rest, and a secret outlives a second rotation.
-- Keys: the wallet key of a login belongs to its secret key.

CREATE INDEX webhook_deliveries_undelivered ON webhook_deliveries (webhook_id, status, created_at DESC, event_id DESC)
    WHERE status <> 'delivered';

-- The secret's number before the first of the rotations that followed each other within a day; null: the one before.
ALTER TABLE webhooks ADD COLUMN secret_number_before integer;

-- A wallet key that a login made beside a secret key; null: it stands by itself.
ALTER TABLE wallet_keys ADD COLUMN secret_key_id text REFERENCES secret_keys;
CREATE INDEX wallet_keys_login ON wallet_keys (secret_key_id) WHERE secret_key_id IS NOT NULL AND revoked_at IS NULL;
