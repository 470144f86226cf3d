SELECT doc_id, n_tokens
FROM documents
WHERE is_root AND n_tokens NOT BETWEEN $root_min_tokens AND $root_max_tokens
