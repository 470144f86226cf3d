-- Every accepted pair has one evidence span, inside its chunk and its context's tokens; a span that
-- is not the whole context keeps enough of the gain. Without evidence there are no spans.
WITH accepted AS (
    SELECT root_id, anchor, chunk_id, count(*) AS pairs FROM pairs
    WHERE accepted AND $evidence GROUP BY ALL
),
spans AS (
    SELECT root_id, anchor, chunk_id, count(*) AS spans FROM evidence GROUP BY ALL
),
faulty AS (
    SELECT root_id, anchor, chunk_id,
           CASE WHEN start < 0 OR "end" <= start OR "end" > length THEN 'outside the chunk'
                WHEN token_start < 0 OR token_end <= token_start OR token_end > tokens
                    THEN 'outside the tokens'
                WHEN NOT list_contains($kinds, kind) OR measure NOT IN ('surprisal', 'entropy')
                    THEN 'unknown kind or measure'
                WHEN (kept IS NULL) <> (removed IS NULL) OR isnan(kept) OR isnan(removed)
                     OR isinf(kept) OR isinf(removed) THEN 'undefined share'
                WHEN kept < $min_kept - 1e-6 THEN 'keeps too little'
                WHEN kept IS NULL AND (start > 0 OR "end" < length) THEN 'not the whole context'
           END AS fault
    FROM (
        SELECT e.*, c."end" - c.start AS length, len(c.token_ids) AS tokens
        FROM evidence AS e LEFT JOIN contexts AS c USING (chunk_id)
    )
    WHERE fault IS NOT NULL OR length IS NULL
)
SELECT root_id, anchor, chunk_id, coalesce(fault, 'chunk unknown') AS fault FROM faulty
UNION ALL
SELECT root_id, anchor, chunk_id, 'pairs and spans differ'
FROM accepted FULL JOIN spans USING (root_id, anchor, chunk_id)
WHERE pairs IS DISTINCT FROM spans
