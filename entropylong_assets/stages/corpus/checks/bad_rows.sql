-- Rows that could not be read; the others were read all the same, as on_bad_row is 'skip'.
SELECT file, "row", reason, detail
FROM dropped
WHERE reason NOT IN ('too_short', 'too_long', 'empty', 'duplicate_in_shard', 'contaminated',
                  'taken_down')
  AND NOT contains(reason, '.')  -- of a filter
