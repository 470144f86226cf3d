-- Each rate is the share of its trials, inside its interval; every compared rule has its rates.
WITH recounted AS (
    SELECT rule, kind, count(*) AS trials, count(*) FILTER (list_contains(accepted_by, rule)) AS hits
    FROM trials, (SELECT unnest($evaluated_rules) AS rule)
    GROUP BY rule, kind
)
SELECT kind, rule, r.passed, r.total, c.hits AS recounted, c.trials
FROM rates AS r FULL JOIN recounted AS c USING (kind, rule)
WHERE r.total IS NULL
   OR (kind <> 'retrieved' AND (r.passed <> coalesce(c.hits, 0) OR r.total <> coalesce(c.trials, 0)))
   OR (r.total > 0 AND (abs(r.rate - r.passed / r.total) > 1e-12 OR r.rate NOT BETWEEN r.low AND r.high))
