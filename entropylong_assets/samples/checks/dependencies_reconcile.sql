-- Every accepted pair is in a sample once, or was dropped with its context or root.
WITH accepted AS (
    SELECT root_id, chunk_id, count(*) AS wanted FROM pairs WHERE accepted GROUP BY ALL
),
packed AS (SELECT root_id, chunk_id, count(*) AS packed FROM dependencies GROUP BY ALL),
lost AS (
    SELECT root_id, chunk_id, sum(n_dependencies) AS lost FROM dropped
    WHERE chunk_id IS NOT NULL GROUP BY ALL
),
lost_roots AS (SELECT DISTINCT root_id FROM dropped WHERE chunk_id IS NULL)
SELECT root_id, chunk_id, wanted, packed, lost
FROM accepted FULL JOIN packed USING (root_id, chunk_id) LEFT JOIN lost USING (root_id, chunk_id)
WHERE coalesce(wanted, 0) <> coalesce(packed, 0) + coalesce(lost, 0)
  AND root_id NOT IN (SELECT root_id FROM lost_roots)
