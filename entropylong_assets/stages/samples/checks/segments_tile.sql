-- Segments cover the sample from the first token to the last without gap or overlap.
WITH placed AS (
    SELECT *, lag("end", 1, 0) OVER (PARTITION BY sample_id ORDER BY segment) AS free_from,
           row_number() OVER (PARTITION BY sample_id ORDER BY segment) - 1 AS number,
           max("end") OVER (PARTITION BY sample_id) AS last_end
    FROM segments
)
SELECT sample_id, segment, role, start, "end", free_from
FROM placed
WHERE start <> free_from OR "end" <= start OR segment <> number OR last_end <> $sample_tokens
UNION ALL
SELECT sample_id, NULL, 'no segments', NULL, NULL, NULL
FROM samples ANTI JOIN segments USING (sample_id)
UNION ALL
SELECT sample_id, segment, 'no such sample', start, "end", NULL
FROM segments ANTI JOIN samples USING (sample_id)
