-- Plans and their credit bundles (gateway/billing/plans.py).

-- name: find
-- A meter that was deleted is still linked: the plan does not allow more than before.
SELECT p.*,
       (SELECT coalesce(jsonb_agg(jsonb_build_object('meter_id', m.meter_id, 'name', m.name) ORDER BY m.meter_id), '[]')
        FROM plan_meters pm JOIN meters m USING (meter_id)
        WHERE pm.plan_id = p.plan_id) AS linked_meters
FROM plans p WHERE p.merchant_id = $1 AND p.plan_id = $2 AND p.deleted_at IS NULL;

-- name: lock
SELECT plan_id, is_free, period_amount_nano FROM plans
WHERE merchant_id = $1 AND plan_id = $2 AND deleted_at IS NULL FOR NO KEY UPDATE;

-- name: page
SELECT p.*,
       (SELECT coalesce(jsonb_agg(jsonb_build_object('meter_id', m.meter_id, 'name', m.name) ORDER BY m.meter_id), '[]')
        FROM plan_meters pm JOIN meters m USING (meter_id)
        WHERE pm.plan_id = p.plan_id) AS linked_meters
FROM plans p
WHERE p.merchant_id = $1 AND p.deleted_at IS NULL AND (p.created_at, p.plan_id) < ($2, $3)
ORDER BY p.created_at DESC, p.plan_id DESC
LIMIT $4;

-- name: free
SELECT plan_id FROM plans WHERE merchant_id = $1 AND is_free AND deleted_at IS NULL;

-- name: insert
INSERT INTO plans (plan_id, merchant_id, name, period_amount_nano, included_credit_nano, billing_interval, rollover_type,
                   bundle_rollover_type, overage, overage_cap_nano, unlinked_meters, is_free)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
ON CONFLICT (merchant_id) WHERE is_free AND deleted_at IS NULL DO NOTHING;

-- name: update
UPDATE plans
SET name = $2, included_credit_nano = $3, rollover_type = $4, bundle_rollover_type = $5, overage = $6,
    overage_cap_nano = $7, unlinked_meters = $8, default_auto_top_up_bundle_id = $9
WHERE plan_id = $1;

-- name: archive
UPDATE plans SET archived_at = coalesce(archived_at, now()) WHERE plan_id = $1;

-- name: delete
UPDATE plans SET deleted_at = now() WHERE plan_id = $1;

-- name: in_use
SELECT EXISTS (SELECT 1 FROM subscriptions WHERE status = 'active' AND (plan_id = $1 OR pending_plan_id = $1));

-- name: own_meters
-- Which of these meters are the merchant's.
SELECT meter_id FROM meters WHERE merchant_id = $1 AND meter_id = ANY ($2) AND deleted_at IS NULL;

-- name: unlink_meters
DELETE FROM plan_meters WHERE plan_id = $1;

-- name: link_meters
INSERT INTO plan_meters (plan_id, meter_id) SELECT $1, unnest($2::text[]) ON CONFLICT DO NOTHING;

-- name: bundles
SELECT credit_bundle_id, plan_id, name, cost_nano, credit_nano, created_at FROM credit_bundles
WHERE plan_id = ANY ($1) AND deleted_at IS NULL ORDER BY created_at, credit_bundle_id;

-- name: bundle
SELECT b.credit_bundle_id, b.plan_id, b.name, b.cost_nano, b.credit_nano, b.created_at
FROM credit_bundles b JOIN plans p USING (plan_id)
WHERE p.merchant_id = $1 AND b.credit_bundle_id = $2 AND b.deleted_at IS NULL AND p.deleted_at IS NULL;

-- name: bundle_page
-- Of one plan, or ($5 null) of all.
SELECT b.credit_bundle_id, b.plan_id, b.name, b.cost_nano, b.credit_nano, b.created_at
FROM credit_bundles b JOIN plans p USING (plan_id)
WHERE p.merchant_id = $1 AND b.deleted_at IS NULL AND p.deleted_at IS NULL
  AND (b.created_at, b.credit_bundle_id) < ($2, $3) AND ($5::text IS NULL OR b.plan_id = $5)
ORDER BY b.created_at DESC, b.credit_bundle_id DESC
LIMIT $4;

-- name: insert_bundle
-- Those made together keep their order.
INSERT INTO credit_bundles (credit_bundle_id, plan_id, name, cost_nano, credit_nano, created_at)
VALUES ($1, $2, $3, $4, $5, clock_timestamp());

-- name: update_bundle
UPDATE credit_bundles SET name = coalesce($3, name), cost_nano = coalesce($4, cost_nano),
                          credit_nano = coalesce($5, credit_nano)
WHERE credit_bundle_id = $1 AND plan_id = $2 AND deleted_at IS NULL RETURNING credit_bundle_id;

-- name: delete_bundle
UPDATE credit_bundles SET deleted_at = now()
WHERE credit_bundle_id = $1 AND plan_id = $2 AND deleted_at IS NULL RETURNING credit_bundle_id;

-- name: forget_bundles
-- Nobody tops up with a bundle that is gone.
WITH of_plans AS (
    UPDATE plans SET default_auto_top_up_bundle_id = NULL WHERE default_auto_top_up_bundle_id = ANY ($1)
)
UPDATE subscriptions SET auto_top_up_bundle_id = NULL WHERE auto_top_up_bundle_id = ANY ($1);

-- name: set_default_bundle
UPDATE plans SET default_auto_top_up_bundle_id = $2 WHERE plan_id = $1;
