-- Ids that occur several times in the shard: the text would be used several times.
SELECT doc_id, count(*) AS copies FROM documents GROUP BY doc_id HAVING count(*) > 1
