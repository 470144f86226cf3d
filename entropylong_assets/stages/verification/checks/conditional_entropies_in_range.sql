-- Entropies and surprisals given contexts and controls are finite and within their bounds.
WITH conditional AS (
    SELECT root_id, anchor, entropy_context AS entropy, surprisal_context AS surprisal FROM pairs
    UNION ALL
    SELECT root_id, anchor, entropy, surprisal FROM controls
)
SELECT *
FROM conditional
WHERE (entropy IS NULL) <> (surprisal IS NULL)
   OR isnan(entropy) OR isnan(surprisal) OR isinf(surprisal)
   OR entropy < -1e-4 OR surprisal < -1e-4
   OR entropy > (SELECT ln(vocab_size) FROM summary) + 1e-3
