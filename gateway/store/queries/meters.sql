-- name: resolve
SELECT meter_id FROM meters
WHERE merchant_id = $1 AND (meter_id = $2 OR meter_slug = $2 OR secret_hash = $3)
ORDER BY deleted_at IS NOT NULL, (secret_hash = $3) DESC, (meter_id = $2) DESC, created_at DESC
LIMIT 1;

-- name: find
SELECT meter_id, meter_slug, name, version, definition, created_at FROM meters
WHERE merchant_id = $1 AND deleted_at IS NULL AND (meter_id = $2 OR meter_slug = $2 OR secret_hash = $3)
ORDER BY (secret_hash = $3) DESC, (meter_id = $2) DESC
LIMIT 1;

-- name: lock
SELECT meter_id, meter_slug, name, version, definition, created_at FROM meters
WHERE merchant_id = $1 AND deleted_at IS NULL AND meter_id = $2
FOR UPDATE;

-- name: page
SELECT meter_id, meter_slug, name, version, definition, created_at FROM meters
WHERE merchant_id = $1 AND deleted_at IS NULL AND (created_at, meter_id) < ($2, $3)
ORDER BY created_at DESC, meter_id DESC
LIMIT $4;

-- name: create
-- The row and its first version, or nothing where the slug is taken.
WITH created AS (
    INSERT INTO meters (meter_id, merchant_id, meter_slug, secret_hash, name, version, definition)
    VALUES ($1, $2, $3, $4, $5, 1, $6)
    ON CONFLICT (merchant_id, meter_slug) WHERE deleted_at IS NULL DO NOTHING
    RETURNING *
), first_version AS (
    INSERT INTO meter_versions (meter_id, version, definition) SELECT meter_id, version, definition FROM created
)
SELECT meter_id, meter_slug, name, version, definition, created_at FROM created;

-- name: rename
UPDATE meters SET name = $2 WHERE meter_id = $1;

-- name: reprice
WITH changed AS (
    UPDATE meters SET version = version + 1, definition = $2 WHERE meter_id = $1
    RETURNING meter_id, version, definition
)
INSERT INTO meter_versions (meter_id, version, definition) SELECT meter_id, version, definition FROM changed;

-- name: delete
UPDATE meters SET deleted_at = now() WHERE meter_id = $1 AND deleted_at IS NULL;

-- name: versions
SELECT v.meter_id, v.version, v.definition
FROM unnest($1::text[], $2::integer[]) AS wanted (meter_id, version)
JOIN meter_versions v ON v.meter_id = wanted.meter_id AND v.version = wanted.version;
