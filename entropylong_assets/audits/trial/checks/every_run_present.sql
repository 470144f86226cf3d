-- Each planned arm and seed has a run that learnt something.
SELECT p.arm, p.seed
FROM planned AS p ANTI JOIN (SELECT * FROM runs WHERE steps > 0) AS r USING (arm, seed)
