-- Logins of the published SDKs (gateway/api/login.py). A row is an approval that a person is looking at, or the one-time
-- code that followed it. Both end with the secret key that was given: a code of a revoked key is worth nothing.
CREATE TABLE logins (
    token_hash bytea PRIMARY KEY,                    -- SHA-256
    step       text NOT NULL CHECK (step IN ('approval', 'code')),
    key_hash   bytea NOT NULL,                       -- of the secret key that was given
    expires_at timestamptz NOT NULL
);
CREATE INDEX logins_expired ON logins (expires_at);
