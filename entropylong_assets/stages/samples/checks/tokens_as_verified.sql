-- The tokens of every segment are those that were scored, or those of the passage, including
-- separators.
WITH stored AS (
    SELECT sample_id, unnest(input_ids) AS token,
           generate_subscripts(input_ids, 1) - 1 AS position
    FROM samples
),
texts AS (
    SELECT chunk_id AS key, token_ids FROM contexts
    UNION ALL
    SELECT chunk_id, token_ids FROM passages
    UNION ALL
    SELECT root_id, list_concat(token_ids, $separator_ids::UINTEGER[]) FROM roots
),
placed AS (
    -- A root can be in pieces: each continues where the one before it ended.
    SELECT sample_id, start, "end", role, coalesce(chunk_id, root_id) AS key,
           CASE WHEN role = 'root' THEN coalesce(sum("end" - start) OVER (
               PARTITION BY sample_id, root_id, role ORDER BY start
               ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) ELSE 0 END AS skipped
    FROM segments WHERE role IN ('verified', 'hard_negative', 'unverified', 'filler', 'root')
),
expected AS (
    SELECT sample_id, role, key, unnest(piece) AS token,
           start + generate_subscripts(piece, 1) - 1 AS position
    FROM (
        SELECT *, CASE WHEN role IN ('root', 'filler')
                       THEN list_slice(token_ids, skipped + 1, skipped + "end" - start)
                       ELSE token_ids END AS piece
        FROM placed JOIN texts USING (key)
    )
)
SELECT sample_id, role, key, position, expected.token AS expected, stored.token AS stored
FROM expected LEFT JOIN stored USING (sample_id, position)
WHERE expected.token IS DISTINCT FROM stored.token
UNION ALL
SELECT sample_id, role, key, min(start), sum("end" - start), any_value(len(token_ids))
FROM placed LEFT JOIN texts USING (key)
GROUP BY sample_id, role, key, CASE WHEN role = 'root' THEN 0 ELSE start END
HAVING any_value(len(token_ids)) IS DISTINCT FROM sum("end" - start)
   -- Only the filler that ends a sample can be cut.
   AND (role <> 'filler' OR max("end") < $sample_tokens
        OR coalesce(any_value(len(token_ids)), 0) < sum("end" - start))
