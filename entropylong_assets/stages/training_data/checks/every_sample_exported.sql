-- Each format holds as many samples of each split as the manifest tells, and the splits with what
-- was left out are all samples of the tables.
SELECT f.format, s.split, s.samples AS wanted, coalesce(sum(found.samples), 0) AS found
FROM formats AS f CROSS JOIN splits AS s
LEFT JOIN found ON found.format = f.format AND found.split = s.split
GROUP BY f.format, s.split, s.samples
HAVING coalesce(sum(found.samples), 0) <> s.samples
UNION ALL
SELECT 'tables', 'all', count(*), (SELECT sum(samples) FROM splits) + any_value(summary.left_out)
FROM samples CROSS JOIN summary
HAVING count(*) <> (SELECT sum(samples) FROM splits) + any_value(summary.left_out)
