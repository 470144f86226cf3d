-- Each rate is the share of its trials, inside its interval.
WITH counted AS (
    SELECT kind, 'plain' AS rule, count(*) AS total, count(*) FILTER (accepted_plain) AS passed
    FROM trials GROUP BY kind
    UNION ALL
    SELECT kind, 'calibrated', count(*), count(*) FILTER (accepted_calibrated)
    FROM trials GROUP BY kind
)
SELECT kind, rule, r.passed, r.total, c.passed AS recounted, c.total AS trials
FROM rates AS r LEFT JOIN counted AS c USING (kind, rule)
WHERE (kind <> 'retrieved' AND (r.passed <> coalesce(c.passed, 0) OR r.total <> coalesce(c.total, 0)))
   OR (r.total > 0 AND (abs(r.rate - r.passed / r.total) > 1e-12 OR r.rate NOT BETWEEN r.low AND r.high))
