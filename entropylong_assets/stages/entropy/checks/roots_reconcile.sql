-- Every document chosen as a root was scored once, or dropped under a reason; no other was.
WITH seen AS (
    SELECT root_id FROM roots UNION ALL SELECT root_id FROM dropped
)
SELECT coalesce(doc_id, root_id) AS doc_id, count(root_id) AS times
FROM documents FULL JOIN seen ON root_id = doc_id
GROUP BY coalesce(doc_id, root_id), is_root
HAVING count(root_id) <> coalesce(is_root, false)::INT
