-- A document id stands for one text: twice in a shard means it would be used twice.
SELECT doc_id, count(*) AS copies FROM documents GROUP BY doc_id HAVING count(*) > 1
