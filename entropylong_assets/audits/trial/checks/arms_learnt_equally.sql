-- Runs of one setup have equally many steps and tokens, and each of its arms the same seeds.
WITH trained AS (SELECT * FROM runs WHERE tokens > 0),
of_arm AS (SELECT setup, arm, list_sort(list(seed)) AS seeds FROM trained GROUP BY setup, arm),
first AS (SELECT setup, min(seeds) AS seeds FROM of_arm GROUP BY setup)
SELECT setup, arm, 'seeds' AS fault
FROM of_arm JOIN first USING (setup)
WHERE of_arm.seeds <> first.seeds
UNION ALL
SELECT setup, arm, 'tokens' AS fault
FROM trained JOIN (
    SELECT setup, min(steps) AS steps, min(learnt_tokens) AS learnt_tokens FROM trained GROUP BY setup
) AS least USING (setup)
WHERE trained.steps <> least.steps OR trained.learnt_tokens <> least.learnt_tokens
