SELECT root_id, len(token_ids) AS n_tokens, len(entropies) AS entropies,
       len(surprisals) AS surprisals
FROM roots
WHERE len(entropies) <> len(token_ids) OR len(surprisals) <> len(token_ids)
