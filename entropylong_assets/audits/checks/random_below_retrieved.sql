-- Under the rule in force random contexts pass less often than retrieved ones.
SELECT random.rate AS random, retrieved.rate AS retrieved
FROM rates AS random JOIN rates AS retrieved USING (rule)
WHERE random.kind = 'random' AND retrieved.kind = 'retrieved' AND rule = $rule
  AND random.passed > 0 AND random.rate >= retrieved.rate
