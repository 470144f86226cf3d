SELECT root_id, anchor, chunk_id
FROM candidates JOIN chunks USING (chunk_id)
WHERE chunks.doc_id = candidates.root_id
