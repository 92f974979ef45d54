-- name: insert_book
INSERT INTO price_books (version, content) VALUES ($1, $2) ON CONFLICT (version) DO NOTHING;

-- name: book
SELECT content FROM price_books WHERE version = $1;

-- name: ping
SELECT 1;

-- name: merchant
-- By its own id, or that of one of its connections or meters.
SELECT m.merchant_id, p.version, b.content
FROM merchants m LEFT JOIN merchant_prices p USING (merchant_id) LEFT JOIN price_books b ON b.version = p.version
WHERE m.merchant_id = $1
   OR m.merchant_id = (SELECT merchant_id FROM connections WHERE connection_id = $1)
   OR m.merchant_id = (SELECT merchant_id FROM meters WHERE meter_id = $1);

-- name: set_merchant
INSERT INTO merchant_prices (merchant_id, version) VALUES ($1, $2)
ON CONFLICT (merchant_id) DO UPDATE SET version = $2, updated_at = now();

-- name: clear_merchant
DELETE FROM merchant_prices WHERE merchant_id = $1;
