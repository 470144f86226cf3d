-- Token by token: what stands in a sample is what was scored, separators included.
WITH stored AS (
    SELECT sample_id, unnest(input_ids) AS token,
           generate_subscripts(input_ids, 1) - 1 AS position
    FROM samples
),
texts AS (
    SELECT chunk_id AS key, token_ids FROM contexts
    UNION ALL
    SELECT root_id, list_concat(token_ids, $separator_ids::UINTEGER[]) FROM roots
),
placed AS (
    SELECT sample_id, start, "end", role, coalesce(chunk_id, root_id) AS key
    FROM segments WHERE role IN ('verified', 'hard_negative', 'root')
),
expected AS (
    SELECT sample_id, role, key, unnest(token_ids) AS token,
           start + generate_subscripts(token_ids, 1) - 1 AS position
    FROM placed JOIN texts USING (key)
)
SELECT sample_id, role, key, position, expected.token AS expected, stored.token AS stored
FROM expected LEFT JOIN stored USING (sample_id, position)
WHERE expected.token IS DISTINCT FROM stored.token
UNION ALL
SELECT sample_id, role, key, start, "end" - start, len(token_ids)
FROM placed LEFT JOIN texts USING (key)
WHERE len(token_ids) IS DISTINCT FROM "end" - start
