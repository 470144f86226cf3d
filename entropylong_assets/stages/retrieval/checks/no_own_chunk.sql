-- A candidate whose passage is not kept can't be told from one of the root's own.
SELECT root_id, anchor, chunk_id
FROM candidates LEFT JOIN chunks USING (chunk_id)
WHERE chunks.doc_id = candidates.root_id OR chunks.doc_id IS NULL
