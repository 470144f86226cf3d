-- Scores in place are numbers, and no entropy or surprisal is negative.
SELECT recipe, root_id, anchor, entropy_in_place, surprisal_in_place
FROM anchors
WHERE isnan(entropy_in_place) OR isnan(surprisal_in_place) OR isnan(entropy_random)
   OR entropy_in_place < -1e-4 OR surprisal_in_place < -1e-4
UNION ALL
SELECT recipe, root_id, anchor, entropy_in_place, surprisal_in_place
FROM dependencies
WHERE distance < 0 OR isnan(entropy_in_place) OR isnan(surprisal_replaced)
