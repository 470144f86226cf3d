SELECT root_id, anchor, "rank", similarity, previous
FROM (
    SELECT *, lag(similarity) OVER (PARTITION BY root_id, anchor ORDER BY "rank") AS previous
    FROM candidates
)
WHERE similarity > previous OR similarity NOT BETWEEN -1.0001 AND 1.0001 OR isnan(similarity)
