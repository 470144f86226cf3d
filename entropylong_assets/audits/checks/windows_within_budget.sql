-- No recipe has a root twice, and every window contains at least its root and contexts.
WITH counted AS (
    SELECT recipe, count(*) AS roots, count(DISTINCT root_id) AS distinct_roots
    FROM windows GROUP BY recipe
)
SELECT recipe, root_id, window_tokens, context_tokens, root_tokens
FROM windows
WHERE window_tokens < context_tokens + root_tokens OR context_tokens <= 0
   OR key_tokens NOT BETWEEN 0 AND root_tokens
UNION ALL
SELECT recipe, 'a root occurs twice', roots, distinct_roots, NULL FROM counted WHERE roots <> distinct_roots
