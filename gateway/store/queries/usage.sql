-- name: sums
-- {sums}: the table, {owner}: its column that $1 is of. Days are those of a zone $4 minutes east of UTC.
SELECT ((hour AT TIME ZONE 'UTC') + make_interval(mins => $4))::date AS day,
       sum(requests) AS requests, sum(tokens) AS tokens, sum(cost_nano) AS cost_nano, sum(fee_nano) AS fee_nano,
       sum(charge_nano) AS charge_nano
FROM {sums}
WHERE {owner} = $1 AND hour >= $2 AND hour < $3{scope}
GROUP BY day;

-- name: pair
-- A pair of metadata that is summed, and since when: null where from the first request on.
SELECT p.pair_id, s.hour AS since
FROM metadata_pairs p
LEFT JOIN usage_by_pair_since s ON s.merchant_id = p.merchant_id
WHERE p.merchant_id = $1 AND p.key = $2 AND p.value = $3;

-- name: by_row
SELECT ((created_at AT TIME ZONE 'UTC') + make_interval(mins => $4))::date AS day,
       count(*) AS requests,
       sum(coalesce((usage->>'input_tokens')::bigint, 0) + coalesce((usage->>'output_tokens')::bigint, 0)) AS tokens,
       sum(cost_nano) AS cost_nano, sum(fee_nano) AS fee_nano, sum(charge_nano) AS charge_nano
FROM requests
WHERE merchant_id = $1 AND created_at >= $2 AND created_at < $3{scope}{pairs}
GROUP BY day;
