-- A document, as root or as context, is in train or in validation, not in both.
SELECT doc_id, count(DISTINCT split) AS splits
FROM exported_ids
WHERE doc_id IS NOT NULL
GROUP BY doc_id HAVING count(DISTINCT split) > 1
