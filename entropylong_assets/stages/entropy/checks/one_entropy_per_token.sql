SELECT root_id, n_tokens, len(entropies) AS entropies, len(surprisals) AS surprisals
FROM roots JOIN documents ON doc_id = root_id
WHERE len(token_ids) <> n_tokens OR len(entropies) <> n_tokens OR len(surprisals) <> n_tokens
