-- Recompute means, deviations, threshold and anchors from the stored entropies and surprisals.
WITH tokens AS (
    SELECT root_id, unnest(entropies)::DOUBLE AS entropy, unnest(surprisals)::DOUBLE AS surprisal,
           generate_subscripts(entropies, 1) - 1 AS position
    FROM roots
),
figures AS (
    SELECT root_id, avg(entropy) AS mean, stddev_pop(entropy) AS std,
           avg(surprisal) AS surprisal_mean, stddev_pop(surprisal) AS surprisal_std
    FROM tokens GROUP BY root_id
),
judged AS (
    SELECT tokens.root_id, position, entropy > threshold AS is_uncertain,
           $anchors = 'both' AND entropy > $min_entropy
           AND surprisal > surprisal_mean + $alpha * surprisal_std AS is_surprising
    FROM tokens JOIN roots USING (root_id)
    WHERE position >= $min_anchor_position
),
found AS (
    SELECT root_id, list(position ORDER BY position) AS anchors,
           coalesce(list(position ORDER BY position) FILTER (NOT is_uncertain), []) AS by_surprisal
    FROM judged WHERE is_uncertain OR is_surprising
    GROUP BY root_id
)
SELECT roots.root_id, roots.threshold, figures.mean + $alpha * figures.std AS recomputed,
       roots.anchors, found.anchors AS recomputed_anchors,
       roots.by_surprisal, found.by_surprisal AS recomputed_by_surprisal
FROM roots LEFT JOIN figures USING (root_id) LEFT JOIN found USING (root_id)
WHERE abs(roots.mean - figures.mean) > 1e-6 OR abs(roots.std - figures.std) > 1e-6
   OR abs(roots.threshold - (figures.mean + $alpha * figures.std)) > 1e-6
   OR abs(roots.surprisal_mean - figures.surprisal_mean) > 1e-6
   OR abs(roots.surprisal_std - figures.surprisal_std) > 1e-6
   OR roots.anchors::BIGINT[] <> coalesce(found.anchors, [])::BIGINT[]
   OR roots.by_surprisal::BIGINT[] <> coalesce(found.by_surprisal, [])::BIGINT[]
