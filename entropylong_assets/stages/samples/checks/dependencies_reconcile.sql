-- Every pair that the recipe counts as verified is in a sample once, or was dropped with its
-- context or root. Recipes without verification have no dependencies at all.
WITH accepted AS (
    SELECT root_id, chunk_id, anchor, gain FROM pairs
    WHERE CASE $verdict WHEN 'accepted' THEN accepted
                        WHEN 'accepted_plain' THEN accepted_plain
                        WHEN 'accepted_calibrated' THEN accepted_calibrated
                        ELSE false END
),
wanted AS (SELECT root_id, chunk_id, count(*) AS wanted FROM accepted GROUP BY ALL),
packed AS (SELECT root_id, chunk_id, count(*) AS packed FROM dependencies GROUP BY ALL),
lost AS (
    SELECT root_id, chunk_id, sum(n_dependencies) AS lost FROM dropped
    WHERE chunk_id IS NOT NULL GROUP BY ALL
),
lost_roots AS (
    SELECT root_id, sum(n_dependencies) AS lost FROM dropped WHERE chunk_id IS NULL GROUP BY ALL
)
SELECT root_id, chunk_id, wanted, packed, lost
FROM wanted FULL JOIN packed USING (root_id, chunk_id) LEFT JOIN lost USING (root_id, chunk_id)
WHERE coalesce(wanted, 0) <> coalesce(packed, 0) + coalesce(lost, 0)
  AND root_id NOT IN (SELECT root_id FROM lost_roots)
UNION ALL
SELECT root_id, NULL, sum(wanted), NULL, lost
FROM lost_roots LEFT JOIN wanted USING (root_id)
GROUP BY root_id, lost HAVING coalesce(sum(wanted), 0) <> lost
UNION ALL
SELECT root_id, chunk_id, NULL, packed, NULL FROM packed SEMI JOIN lost_roots USING (root_id)
UNION ALL
SELECT root_id, chunk_id, 0, 1, NULL
FROM dependencies ANTI JOIN accepted USING (root_id, chunk_id, anchor, gain)
