-- Both gains and all verdicts once more, from the stored entropies and surprisals.
WITH base AS (
    SELECT *, entropy::DOUBLE AS h, entropy_context::DOUBLE AS behind,
           least(entropy, entropy_control)::DOUBLE AS reference,
           surprisal_context < least(surprisal, surprisal_control) AS believes
    FROM pairs
),
gains AS (
    SELECT *,
           CASE WHEN h > 0 THEN (h - behind) / h END AS g,
           CASE WHEN h > 0 AND entropy_control IS NOT NULL THEN (reference - behind) / h END AS cg
    FROM base
),
verdicts AS (
    SELECT *,
           coalesce(g > $epsilon, false) AS plain,
           coalesce(cg > $epsilon AND (believes OR NOT $require_surprisal_drop), false)
               AS calibrated
    FROM gains
),
reasons AS (
    SELECT *,
           CASE WHEN $rule = 'plain' THEN plain ELSE calibrated END AS passes,
           CASE WHEN passes THEN 'accepted'
                WHEN $rule = 'calibrated' AND cg > $epsilon THEN 'surprisal_rose'
                WHEN $rule = 'calibrated' AND entropy_control IS NULL THEN 'no_control'
                ELSE 'gain_too_small' END AS reason
    FROM verdicts
)
SELECT root_id, anchor, chunk_id, gain, g AS recomputed, calibrated_gain, cg AS recomputed_calibrated,
       accepted, verdict
FROM reasons
WHERE (gain IS NULL) <> (g IS NULL) OR abs(gain - g) > 1e-9
   OR (calibrated_gain IS NULL) <> (cg IS NULL) OR abs(calibrated_gain - cg) > 1e-9
   OR accepted_plain <> plain OR accepted_calibrated <> calibrated
   OR accepted <> passes
   OR CASE WHEN entropy_context IS NULL
           THEN verdict NOT IN ('near_duplicate', 'too_long_for_model', 'not_tried')
           ELSE verdict <> reason END
