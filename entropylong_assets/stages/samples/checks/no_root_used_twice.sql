-- A root occurs in one sample of one shard, whole or in pieces. That the pieces add up to the root
-- once is checked by tokens_as_verified.
WITH used AS (
    SELECT root_id, sample_id, start FROM segments WHERE role = 'root'
    UNION ALL
    SELECT root_id, sample_id, NULL FROM used_elsewhere
)
SELECT root_id, count(DISTINCT sample_id) AS times, list(DISTINCT sample_id) AS sample_ids
FROM used
GROUP BY root_id
HAVING count(DISTINCT sample_id) > 1 OR count(start) > count(DISTINCT start)
