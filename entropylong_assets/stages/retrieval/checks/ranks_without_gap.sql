-- Ranks run from 1 without a gap; neither search gives more candidates than it may. Lists of a few
-- values take half the memory of count(DISTINCT).
SELECT root_id, anchor, count(*) AS candidates, max("rank") AS last_rank,
       count(*) FILTER (found_by <> 'text') AS by_vector,
       count(*) FILTER (found_by <> 'vector') AS by_text
FROM candidates
GROUP BY root_id, anchor
HAVING min("rank") <> 1 OR max("rank") <> count(*)
    OR len(list_distinct(list("rank"))) <> count(*)
    OR len(list_distinct(list(chunk_id))) <> count(*)
    OR by_vector > $top_k OR by_text > $text_candidates
    OR bool_or(found_by NOT IN ('vector', 'text', 'both'))
