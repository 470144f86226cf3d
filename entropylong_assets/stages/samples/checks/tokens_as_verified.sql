-- The tokens of every segment are those that were scored, or those of the passage, including
-- separators. Whole samples are compared first, since a row per token takes much memory: only
-- samples that differ are compared token by token.
WITH placed AS (
    -- A root can be in pieces: each continues where the one before it ended.
    SELECT sample_id, start, "end", role, coalesce(chunk_id, root_id) AS key,
           CASE WHEN role = 'root' THEN coalesce(sum("end" - start) OVER (
               PARTITION BY sample_id, root_id, role ORDER BY start
               ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) ELSE 0 END AS skipped
    FROM segments WHERE role IN ('verified', 'hard_negative', 'unverified', 'filler', 'root')
),
needed AS (SELECT DISTINCT key FROM placed),
texts AS (
    SELECT chunk_id AS key, token_ids FROM contexts SEMI JOIN needed ON chunk_id = key
    UNION ALL
    SELECT chunk_id, token_ids FROM passages SEMI JOIN needed ON chunk_id = key
    UNION ALL
    SELECT root_id, list_concat(token_ids, $separator_ids::UINTEGER[])
    FROM roots SEMI JOIN needed ON root_id = key
),
pieces AS (
    SELECT sample_id, start, "end", role, key,
           CASE WHEN role IN ('root', 'filler')
                THEN list_slice(token_ids, skipped + 1, skipped + "end" - start)
                ELSE token_ids END AS piece
    FROM placed JOIN texts USING (key)
),
whole AS (
    SELECT sample_id, min(start) AS first, max("end") AS last,
           flatten(list(piece ORDER BY start)) AS token_ids
    FROM pieces GROUP BY sample_id
),
different AS (
    SELECT sample_id FROM whole LEFT JOIN samples USING (sample_id)
    WHERE list_slice(input_ids, first + 1, last) IS DISTINCT FROM whole.token_ids
),
stored AS (
    SELECT sample_id, unnest(input_ids) AS token,
           generate_subscripts(input_ids, 1) - 1 AS position
    FROM samples SEMI JOIN different USING (sample_id)
),
expected AS (
    SELECT sample_id, role, key, unnest(piece) AS token,
           start + generate_subscripts(piece, 1) - 1 AS position
    FROM pieces SEMI JOIN different USING (sample_id)
)
SELECT sample_id, role, key, position, expected.token AS expected, stored.token AS stored
FROM expected LEFT JOIN stored USING (sample_id, position)
WHERE expected.token IS DISTINCT FROM stored.token
UNION ALL
SELECT sample_id, role, key, min(start), sum("end" - start), any_value(n)
FROM placed LEFT JOIN (SELECT key, len(token_ids) AS n FROM texts) USING (key)
GROUP BY sample_id, role, key, CASE WHEN role = 'root' THEN 0 ELSE start END
HAVING any_value(n) IS DISTINCT FROM sum("end" - start)
   -- Only the filler that ends a sample can be cut.
   AND (role <> 'filler' OR max("end") < $sample_tokens
        OR coalesce(any_value(n), 0) < sum("end" - start))
