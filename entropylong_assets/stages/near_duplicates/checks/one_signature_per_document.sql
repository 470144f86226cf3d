-- Every document has one signature of as many values as there are permutations, unless it has no
-- word or documents are not compared.
SELECT doc_id, len(signature) AS n_values
FROM signatures LEFT JOIN documents USING (doc_id)
WHERE documents.doc_id IS NULL OR len(signature) <> $permutations OR n_shingles < 1
UNION ALL
SELECT doc_id, count(*) FROM signatures GROUP BY doc_id HAVING count(*) > 1
UNION ALL
SELECT NULL, found.n
FROM (SELECT count(*) AS n FROM documents ANTI JOIN signatures USING (doc_id)) AS found, summary
WHERE found.n <> summary.not_compared
