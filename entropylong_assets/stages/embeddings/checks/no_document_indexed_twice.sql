-- Rows of shards outside the index are never searched: a killed run may have left them.
SELECT doc_id, list(DISTINCT shard) AS shards
FROM indexed SEMI JOIN shards USING (shard)
GROUP BY doc_id
HAVING count(DISTINCT shard) > 1
