-- Shards whose rows in the index are not those that were counted.
WITH stored AS (SELECT shard, count(*) AS n FROM indexed GROUP BY shard)
SELECT shard, shards.n_chunks, stored.n AS stored
FROM shards LEFT JOIN stored USING (shard)
WHERE coalesce(stored.n, 0) <> shards.n_chunks
