-- Plans as the API reads and shows them (gateway/api/plans.py). Plans themselves stand in plans.sql.

-- name: meters
-- The meters of the places in $2 and $3, where each is named by id, slug or secret.
SELECT DISTINCT ON (place) place, m.meter_id
FROM unnest($2::text[], $3::bytea[]) WITH ORDINALITY AS given (name, secret_hash, place)
JOIN meters m ON m.merchant_id = $1 AND m.deleted_at IS NULL
             AND (m.meter_id = given.name OR m.meter_slug = given.name OR m.secret_hash = given.secret_hash)
ORDER BY place, (m.secret_hash = given.secret_hash) DESC, (m.meter_id = given.name) DESC;

-- name: definitions
SELECT meter_id, definition FROM meters WHERE meter_id = ANY ($1);
