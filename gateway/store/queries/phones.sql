-- name: sweep
DELETE FROM sandbox_phone_codes WHERE expires_at < now();

-- name: send
-- A code that is still good is sent again, and its wrong checks go on counting.
INSERT INTO sandbox_phone_codes AS kept (phone_hash, code, expires_at)
VALUES ($1, $2, now() + make_interval(secs => $3))
ON CONFLICT (phone_hash) DO UPDATE SET code = kept.code
RETURNING code;

-- name: check
UPDATE sandbox_phone_codes SET checks = checks + 1 WHERE phone_hash = $1 AND expires_at >= now()
RETURNING code, checks;

-- name: use
DELETE FROM sandbox_phone_codes WHERE phone_hash = $1;
