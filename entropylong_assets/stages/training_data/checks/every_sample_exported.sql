-- Each format has as many rows per split as the manifest says, and the splits, with what is in
-- neither, are all rows of the tables.
SELECT f.format, s.split, s.samples AS expected, coalesce(sum(counted.samples), 0) AS actual
FROM formats AS f CROSS JOIN splits AS s
LEFT JOIN counted ON counted.format = f.format AND counted.split = s.split
GROUP BY f.format, s.split, s.samples
HAVING coalesce(sum(counted.samples), 0) <> s.samples
UNION ALL
SELECT 'tables', 'all', count(*), (SELECT sum(samples) FROM splits) + any_value(n_unsplit)
FROM samples CROSS JOIN unsplit
HAVING count(*) <> (SELECT sum(samples) FROM splits) + any_value(n_unsplit)
