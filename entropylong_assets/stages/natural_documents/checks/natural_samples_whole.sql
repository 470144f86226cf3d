-- Samples are the kept windows, each once, with exactly samples.tokens tokens.
SELECT coalesce(s.window_id, w.window_id) AS window_id, len(s.input_ids) AS n_tokens
FROM samples AS s
FULL JOIN (SELECT * FROM windows WHERE reason IS NULL) AS w USING (window_id)
WHERE s.window_id IS NULL OR w.window_id IS NULL
   OR len(s.input_ids) <> $sample_tokens OR s.start <> w.start OR s.doc_id <> w.doc_id
UNION ALL
SELECT window_id, count(*) FROM samples GROUP BY window_id HAVING count(*) > 1
