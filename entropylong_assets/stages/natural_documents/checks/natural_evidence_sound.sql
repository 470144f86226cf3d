-- The surprisal of a key token falls far enough, and the earlier occurrence is outside of its short
-- window and is the same token. A kept window has as many rows as it has key tokens.
SELECT e.window_id, e.position
FROM evidence AS e LEFT JOIN samples AS s USING (window_id)
WHERE s.window_id IS NULL
   OR e.surprisal_short - e.surprisal_long <= $key_gain - 1e-4
   OR e.surprisal_long >= $key_loss
   OR e.short_start > e.position
   OR (e.found_at IS NULL) <> (e.ngram_tokens IS NULL)
   OR e.found_at >= e.short_start
   OR e.found_at - e.ngram_tokens + 1 < 0
   OR s.input_ids[e.found_at + 1] <> s.input_ids[e.position + 1]
UNION ALL
SELECT window_id, key_tokens
FROM windows LEFT JOIN (SELECT window_id, count(*) AS n FROM evidence GROUP BY window_id) AS e
  USING (window_id)
WHERE reason IS NULL AND key_tokens <> coalesce(e.n, 0)
