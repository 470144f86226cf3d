-- Every document chosen as a root was scored once, or dropped under a reason.
WITH seen AS (
    SELECT root_id FROM roots UNION ALL SELECT root_id FROM dropped
)
SELECT doc_id, count(seen.root_id) AS times
FROM documents LEFT JOIN seen ON root_id = doc_id
GROUP BY doc_id, is_root
HAVING count(seen.root_id) <> is_root::INT
