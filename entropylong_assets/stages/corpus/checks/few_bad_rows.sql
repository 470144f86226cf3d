-- Unreadable rows, if they are more than max_bad_share of all rows read: then the file is damaged,
-- or the source's text_field names the wrong column.
WITH bad AS (
    SELECT file, "row", reason, detail
    FROM dropped
    WHERE reason NOT IN ('too_short', 'too_long', 'empty', 'duplicate_in_shard', 'contaminated',
                         'taken_down')
      AND NOT contains(reason, '.')  -- of a filter
)
SELECT bad.*
FROM bad, summary
WHERE (SELECT count(*) FROM bad) > $max_bad_share * summary.rows_read
ORDER BY file, "row"
