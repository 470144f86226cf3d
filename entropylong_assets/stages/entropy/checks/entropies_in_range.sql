-- 0 <= H <= ln |V|; only the first position can lack a prefix, and so a score.
WITH tokens AS (
    SELECT root_id, unnest(entropies) AS entropy, unnest(surprisals) AS surprisal,
           generate_subscripts(entropies, 1) - 1 AS position
    FROM roots
)
SELECT root_id, position, entropy, surprisal
FROM tokens
WHERE ((entropy IS NULL OR surprisal IS NULL) AND position > 0) OR isnan(entropy) OR isnan(surprisal)
   OR entropy < -1e-4 OR entropy > (SELECT ln(vocab_size) FROM summary) + 1e-3
   OR surprisal < -1e-4 OR isinf(surprisal)
