-- Every document and every window has exactly one outcome, and no root is cut.
SELECT 'documents' AS what, documents AS n FROM summary WHERE documents <> short + dropped + cut
UNION ALL
SELECT 'dropped', dropped FROM summary WHERE dropped <> (SELECT count(*) FROM dropped)
UNION ALL
SELECT 'cut', cut FROM summary WHERE cut <> (SELECT count(DISTINCT doc_id) FROM windows)
UNION ALL
SELECT 'windows', windows FROM summary
WHERE windows <> (SELECT count(*) FROM windows) OR windows <> kept + not_kept
UNION ALL
SELECT 'kept', kept FROM summary WHERE kept <> (SELECT count(*) FROM windows WHERE reason IS NULL)
UNION ALL
SELECT 'tokens', tokens FROM summary
WHERE tokens <> tokens_dropped + (SELECT coalesce(sum("end" - start), 0) FROM windows)
UNION ALL
SELECT 'root ' || doc_id, count(*) FROM windows SEMI JOIN roots ON doc_id = root_id GROUP BY doc_id
UNION ALL
SELECT 'overlap ' || window_id, start
FROM (SELECT *, lag("end") OVER (PARTITION BY doc_id ORDER BY start) AS earlier FROM windows)
WHERE start < earlier
