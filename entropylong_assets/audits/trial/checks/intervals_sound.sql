-- A difference is finite, and lies inside its interval if there is one. Ends have both or neither.
SELECT arm, rival, measure, value, low, high
FROM differences
WHERE (value IS NULL AND items > 0)
   OR NOT isfinite(value)
   OR NOT isfinite(low)
   OR NOT isfinite(high)
   OR (low IS NULL) <> (high IS NULL)
   OR value NOT BETWEEN low - 1e-12 AND high + 1e-12
