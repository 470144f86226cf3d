-- Entropy and surprisal given the controls are the means over the controls of that anchor.
WITH means AS (
    SELECT root_id, anchor, avg(entropy::DOUBLE) AS entropy, avg(surprisal::DOUBLE) AS surprisal,
           count(*) AS n
    FROM controls
    GROUP BY root_id, anchor
)
SELECT root_id, pairs.anchor, entropy_control, means.entropy AS recomputed
FROM pairs LEFT JOIN means USING (root_id, anchor)
WHERE (entropy_control IS NULL) <> (means.entropy IS NULL)
   OR (surprisal_control IS NULL) <> (means.surprisal IS NULL)
   OR abs(entropy_control - means.entropy) > 1e-5
   OR abs(surprisal_control - means.surprisal) > 1e-5
   OR (entropy_context IS NOT NULL AND coalesce(n, 0) <> $controls)
