SELECT rows_left, n_rows AS rows_without_segment
FROM summary, without_segment
WHERE partitions > 0 AND n_rows > rows_left
