-- Within the bounds, as many windows as the share says are kept, and none with a lower gain than
-- one that is not. Outside the bounds none is kept, and the reason is another.
WITH within AS (
  SELECT * FROM windows WHERE gzip_ratio BETWEEN $min_gzip_ratio AND $max_gzip_ratio
)
SELECT window_id, gain FROM windows ANTI JOIN within USING (window_id)
WHERE reason IS NULL OR reason = $low_gain
UNION ALL
SELECT window_id, gain FROM within WHERE reason IS NOT NULL AND reason <> $low_gain
UNION ALL
SELECT window_id, gain FROM within
WHERE reason IS NULL AND gain < (SELECT max(gain) FROM within WHERE reason IS NOT NULL)
UNION ALL
SELECT 'kept', count(*) FILTER (WHERE reason IS NULL) FROM within
HAVING count(*) FILTER (WHERE reason IS NULL) <> ceil(round(count(*) * $keep, 6))
