-- Roots have an allowed length; documents dropped for their length do not.
SELECT root_id, len(token_ids) AS n_tokens, 'root' AS fate
FROM roots
WHERE len(token_ids) NOT BETWEEN $min_tokens AND $max_tokens
UNION ALL
SELECT root_id, n_tokens, reason
FROM dropped
WHERE (reason = 'too_short_for_root') <> (n_tokens < $min_tokens)
   OR (reason = 'too_long_for_root') <> (n_tokens > $max_tokens)
