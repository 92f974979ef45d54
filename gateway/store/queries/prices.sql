-- name: insert_book
INSERT INTO price_books (version, content) VALUES ($1, $2) ON CONFLICT (version) DO NOTHING;

-- name: book
SELECT content FROM price_books WHERE version = $1;

-- name: ping
SELECT 1;
