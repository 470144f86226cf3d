-- Every drawn document is a root once, or dropped once; no other document is; the counts add up.
WITH seen AS (
    SELECT root_id FROM roots UNION ALL SELECT root_id FROM dropped
),
counted AS (
    SELECT (SELECT count(*) FROM documents) AS documents, (SELECT count(*) FROM drawn) AS drawn,
           (SELECT count(*) FROM roots) AS roots, (SELECT count(*) FROM dropped) AS dropped
)
SELECT coalesce(doc_id, root_id) AS doc_id,
       CASE WHEN doc_id IS NULL THEN 'not drawn'
            WHEN count(root_id) = 0 THEN 'drawn, but neither root nor dropped'
            ELSE 'more than once' END AS fault
FROM drawn FULL JOIN seen ON root_id = doc_id
GROUP BY doc_id, root_id
HAVING doc_id IS NULL OR count(root_id) <> 1
UNION ALL
SELECT NULL, 'counts of the summary do not match the tables'
FROM summary, counted
WHERE (summary.documents, summary.drawn, summary.roots, summary.dropped)
      IS DISTINCT FROM (counted.documents, counted.drawn, counted.roots, counted.dropped)
   OR summary.documents <> summary.not_drawn + summary.drawn
   OR summary.drawn <> summary.roots + summary.dropped
