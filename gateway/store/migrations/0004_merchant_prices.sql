-- A merchant's own prices of providers' models, before those of the installation (`obol prices --merchant`). The rows of
-- price_books are kept for ever, because charges name their versions.
CREATE TABLE merchant_prices (
    merchant_id text PRIMARY KEY REFERENCES merchants,
    version     text NOT NULL REFERENCES price_books,
    updated_at  timestamptz NOT NULL DEFAULT now()
);
