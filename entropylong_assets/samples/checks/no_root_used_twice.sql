-- Over all shards that have samples: a root belongs to one of them.
SELECT root_id, count(*) AS times, list(sample_id) AS samples
FROM all_segments
WHERE role = 'root'
GROUP BY root_id
HAVING count(*) > 1
