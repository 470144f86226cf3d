-- Entropy and surprisal of the root alone are those of entropy_scores.
SELECT root_id, anchor, pairs.entropy, roots.entropies[anchor + 1] AS scored
FROM pairs LEFT JOIN roots USING (root_id)
WHERE pairs.entropy IS DISTINCT FROM roots.entropies[anchor + 1]
   OR pairs.surprisal IS DISTINCT FROM roots.surprisals[anchor + 1]
