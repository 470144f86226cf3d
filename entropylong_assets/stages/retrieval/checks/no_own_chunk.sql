-- A candidate whose chunk is not stored can't be told apart from one of the root's own chunks.
SELECT root_id, anchor, chunk_id
FROM candidates LEFT JOIN chunks USING (chunk_id)
WHERE chunks.doc_id = candidates.root_id OR chunks.doc_id IS NULL
