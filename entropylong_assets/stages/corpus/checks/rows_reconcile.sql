-- Every row read is a document or was dropped for a reason.
SELECT rows_read, documents, dropped
FROM (
    SELECT summary.rows_read,
           (SELECT count(*) FROM documents) AS documents,
           (SELECT count(*) FROM dropped) AS dropped
    FROM summary
)
WHERE rows_read <> documents + dropped
