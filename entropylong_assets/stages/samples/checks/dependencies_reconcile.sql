-- Every pair that the recipe's rule accepts is in a sample once, or was dropped with its context or
-- root. Recipes without a rule (`$rule` is empty) have no dependencies.
WITH accepted AS (
    SELECT root_id, chunk_id, anchor, gain FROM pairs
    WHERE CASE $rule WHEN $in_force THEN accepted
                     ELSE list_contains(accepted_by, $rule) END
),
wanted AS (SELECT root_id, chunk_id, count(*) AS wanted FROM accepted GROUP BY ALL),
packed AS (SELECT root_id, chunk_id, count(*) AS packed FROM dependencies GROUP BY ALL),
dropped_contexts AS (
    SELECT root_id, chunk_id, sum(n_dependencies) AS dropped FROM dropped
    WHERE chunk_id IS NOT NULL GROUP BY ALL
),
dropped_roots AS (
    SELECT root_id, sum(n_dependencies) AS dropped FROM dropped
    WHERE chunk_id IS NULL GROUP BY ALL
)
SELECT root_id, chunk_id, wanted, packed, dropped
FROM wanted FULL JOIN packed USING (root_id, chunk_id)
LEFT JOIN dropped_contexts USING (root_id, chunk_id)
WHERE coalesce(wanted, 0) <> coalesce(packed, 0) + coalesce(dropped, 0)
  AND root_id NOT IN (SELECT root_id FROM dropped_roots)
UNION ALL
-- A root of which single contexts were dropped before it was dropped with the others.
SELECT root_id, NULL, sum(wanted), NULL, r.dropped
FROM dropped_roots AS r LEFT JOIN wanted USING (root_id)
LEFT JOIN dropped_contexts AS c USING (root_id, chunk_id)
GROUP BY root_id, r.dropped
HAVING coalesce(sum(wanted), 0) <> r.dropped + coalesce(sum(c.dropped), 0)
UNION ALL
SELECT root_id, chunk_id, NULL, packed, NULL FROM packed SEMI JOIN dropped_roots USING (root_id)
UNION ALL
SELECT root_id, chunk_id, 0, 1, NULL
FROM dependencies ANTI JOIN accepted USING (root_id, chunk_id, anchor, gain)
