-- Members are listed once and are as many as the sources count; so are the clusters' sizes.
SELECT doc_id AS what, count(*) AS n FROM members GROUP BY doc_id HAVING count(*) > 1
UNION ALL
SELECT representative, count(*) + 1
FROM members
GROUP BY representative
HAVING min(cluster_size) <> count(*) + 1 OR max(cluster_size) <> count(*) + 1
UNION ALL
SELECT source, members
FROM (SELECT source, sum(n) AS listed FROM
        (SELECT source, 1 AS n FROM members UNION ALL SELECT source, 0 FROM sources)
      GROUP BY source) AS listed LEFT JOIN sources USING (source)
WHERE listed.listed IS DISTINCT FROM sources.members OR sources.members > sources.documents
