-- Every anchor has a query unless its whole root was dropped; every query has candidates unless it
-- was dropped; every candidate has a query.
WITH anchors AS (SELECT root_id, unnest(anchors) AS anchor FROM roots),
whole AS (SELECT root_id FROM dropped WHERE anchor IS NULL),
single AS (SELECT root_id, anchor FROM dropped WHERE anchor IS NOT NULL),
answered AS (
    SELECT DISTINCT root_id, anchor FROM candidates UNION ALL SELECT root_id, anchor FROM single
)
SELECT root_id, anchor, 'no query' AS fault
FROM anchors ANTI JOIN queries USING (root_id, anchor)
WHERE root_id NOT IN (SELECT root_id FROM whole)
UNION ALL
SELECT root_id, anchor, 'no such anchor' FROM queries ANTI JOIN anchors USING (root_id, anchor)
UNION ALL
SELECT root_id, anchor, 'candidates and drop do not add up'
FROM queries LEFT JOIN answered USING (root_id, anchor)
GROUP BY root_id, anchor HAVING count(answered.root_id) <> 1
UNION ALL
SELECT root_id, anchor, 'dropped root with a query' FROM queries SEMI JOIN whole USING (root_id)
UNION ALL
SELECT root_id, anchor, 'no such query' FROM candidates ANTI JOIN queries USING (root_id, anchor)
