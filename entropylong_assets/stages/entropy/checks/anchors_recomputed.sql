-- Recompute mean, deviation, threshold and anchors from the stored entropies.
WITH tokens AS (
    SELECT root_id, unnest(entropies)::DOUBLE AS entropy,
           generate_subscripts(entropies, 1) - 1 AS position
    FROM roots
),
figures AS (
    SELECT root_id, avg(entropy) AS mean, stddev_pop(entropy) AS std FROM tokens GROUP BY root_id
),
found AS (
    SELECT tokens.root_id, list(position ORDER BY position) AS anchors
    FROM tokens JOIN roots USING (root_id)
    WHERE entropy > roots.threshold AND position >= $min_anchor_position
    GROUP BY tokens.root_id
)
SELECT roots.root_id, roots.threshold, figures.mean + $alpha * figures.std AS recomputed,
       len(roots.anchors) AS anchors, len(found.anchors) AS recomputed_anchors
FROM roots LEFT JOIN figures USING (root_id) LEFT JOIN found USING (root_id)
WHERE abs(roots.mean - figures.mean) > 1e-6 OR abs(roots.std - figures.std) > 1e-6
   OR abs(roots.threshold - (figures.mean + $alpha * figures.std)) > 1e-6
   OR roots.anchors::BIGINT[] <> coalesce(found.anchors, [])::BIGINT[]
