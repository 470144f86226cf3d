-- Chunks of a document are numbered in order, do not overlap and lie inside its text; every document
-- has at least one.
WITH placed AS (
    SELECT chunk_id, doc_id, start, "end", n_embedder_tokens,
           lag("end", 1, 0) OVER (PARTITION BY doc_id ORDER BY chunk_number) AS free_from,
           chunk_number, row_number() OVER (PARTITION BY doc_id ORDER BY chunk_number) AS number
    FROM chunks
)
SELECT doc_id, chunk_id, start, "end", n_chars
FROM documents LEFT JOIN placed USING (doc_id)
WHERE chunk_id IS NULL OR start < free_from OR "end" <= start OR "end" > n_chars
   OR chunk_number <> number - 1
   OR n_embedder_tokens > (SELECT window_tokens FROM summary)
UNION ALL
SELECT doc_id, chunk_id, start, "end", NULL
FROM chunks ANTI JOIN documents USING (doc_id)
