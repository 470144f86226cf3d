-- Every candidate became one pair; those that the leak check rejected are rejected here.
WITH nominated AS (
    SELECT root_id, anchor, "rank", chunk_id, leak_check = 'near_duplicate' AS is_near_duplicate,
           row_number() OVER (PARTITION BY root_id, anchor, "rank") AS time
    FROM candidates
),
judged AS (
    SELECT root_id, anchor, "rank", chunk_id, verdict = 'near_duplicate' AS is_near_duplicate,
           row_number() OVER (PARTITION BY root_id, anchor, "rank") AS time
    FROM pairs
)
SELECT root_id, anchor, "rank", c.chunk_id AS candidate, p.chunk_id AS pair
FROM nominated AS c FULL JOIN judged AS p USING (root_id, anchor, "rank", time)
WHERE c.chunk_id IS DISTINCT FROM p.chunk_id OR c.is_near_duplicate IS DISTINCT FROM p.is_near_duplicate
