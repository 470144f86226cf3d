SELECT doc_id, list(DISTINCT shard) AS shards
FROM indexed
GROUP BY doc_id
HAVING count(DISTINCT shard) > 1
