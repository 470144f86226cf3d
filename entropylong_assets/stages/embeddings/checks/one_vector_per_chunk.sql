-- Copies of documents that another shard owns are deleted when the index is made.
WITH expected AS (
    SELECT chunk_id FROM chunks WHERE doc_id NOT IN (SELECT doc_id FROM duplicates)
),
stored AS (
    SELECT chunk_id, count(*) AS copies
    FROM vectors
    WHERE doc_id NOT IN (SELECT doc_id FROM duplicates)
    GROUP BY chunk_id
)
SELECT coalesce(expected.chunk_id, stored.chunk_id) AS chunk_id, coalesce(copies, 0) AS vectors
FROM expected FULL JOIN stored USING (chunk_id)
WHERE expected.chunk_id IS NULL OR copies IS DISTINCT FROM 1
