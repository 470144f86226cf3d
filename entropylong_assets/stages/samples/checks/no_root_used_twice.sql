-- Over all shards that have samples: a root belongs to one of them, whole or in pieces. That
-- the pieces make up the root once is for tokens_as_verified to say.
SELECT root_id, count(*) AS times, list(sample_id) AS samples
FROM all_segments
WHERE role = 'root'
GROUP BY root_id
HAVING count(DISTINCT sample_id) > 1 OR count(*) > count(DISTINCT start)
