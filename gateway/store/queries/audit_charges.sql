-- I10, compared by `obol audit`: what cards were charged is what was credited, and what was given back.

-- name: count
SELECT count(*) AS charges FROM charges

-- name: differing
-- Charges that succeeded without their grant, grants without a charge that did, or of something else; grants that are
-- not in the ledger once, as they are, though they are applied; amounts that buy another credit; refunds.
WITH paid AS (
    SELECT * FROM charges WHERE status IN ('succeeded', 'refunded')
), granted AS (
    SELECT g.*, concat_ws(' ', g.pot, g.amount_nano) AS said FROM grants g WHERE starts_with(g.grant_id, 'chg_')
), credited AS (
    SELECT wallet_id, reference, count(*) AS times,
           sum(cycle_delta + bundle_delta + prepaid_delta - overage_delta)::bigint AS nano
    FROM ledger_entries
    WHERE kind = 'credit' AND wallet_id IN (SELECT wallet_id FROM charges) AND starts_with(reference, 'chg_')
    GROUP BY 1, 2
)
SELECT coalesce(p.wallet_id, g.wallet_id) AS wallet_id, coalesce(p.charge_id, g.grant_id) AS charge_id,
       'credit granted' AS what, concat_ws(' ', p.pot, nullif(p.credit_nano, 0)) AS expected, coalesce(g.said, '') AS found
FROM paid p FULL JOIN granted g ON g.grant_id = p.charge_id AND g.wallet_id = p.wallet_id
WHERE concat_ws(' ', p.pot, nullif(p.credit_nano, 0)) <> coalesce(g.said, '')
UNION ALL
SELECT coalesce(g.wallet_id, c.wallet_id), coalesce(g.grant_id, c.reference), 'entry of the ledger, and how often',
       concat_ws(' ', g.amount_nano, CASE WHEN g.applied_at IS NULL THEN 0 ELSE 1 END), concat_ws(' ', c.nano, c.times)
FROM granted g FULL JOIN credited c ON c.reference = g.grant_id AND c.wallet_id = g.wallet_id
WHERE (g.grant_id IS NULL OR g.applied_at IS NOT NULL)
  AND (g.amount_nano, 1) IS DISTINCT FROM (c.nano, c.times::integer)
UNION ALL
SELECT wallet_id, charge_id, 'credit, by the amount', (amount_cents * 10000000)::text, credit_nano::text
FROM charges WHERE kind IN ('overage', 'topup') AND credit_nano <> amount_cents * 10000000
UNION ALL
SELECT h.wallet_id, h.charge_id, 'cents refunded, by the refunds', coalesce(r.cents, 0)::text, h.refunded_cents::text
FROM charges h
LEFT JOIN (SELECT charge_id, sum(amount_cents) AS cents FROM refunds WHERE status = 'succeeded' GROUP BY 1) r
  USING (charge_id)
WHERE h.refunded_cents <> coalesce(r.cents, 0)
ORDER BY 1, 2, 3
