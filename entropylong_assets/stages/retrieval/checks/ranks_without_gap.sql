SELECT root_id, anchor, count(*) AS candidates, max("rank") AS last_rank
FROM candidates
GROUP BY root_id, anchor
HAVING min("rank") <> 1 OR max("rank") <> count(*) OR count(DISTINCT "rank") <> count(*)
    OR count(DISTINCT chunk_id) <> count(*) OR count(*) > $top_k
