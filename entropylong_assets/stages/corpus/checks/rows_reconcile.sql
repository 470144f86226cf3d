-- Every row read is a document or was dropped under a reason.
SELECT rows_read, kept, lost
FROM (
    SELECT summary.rows_read,
           (SELECT count(*) FROM documents) AS kept,
           (SELECT count(*) FROM dropped) AS lost
    FROM summary
)
WHERE rows_read <> kept + lost
