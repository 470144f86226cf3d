SELECT root_id, anchor, chunk_id, containment, guard
FROM candidates
WHERE containment NOT BETWEEN 0 AND 1
   OR (guard = 'near_duplicate') <> (containment >= $max_containment::FLOAT)
   OR guard NOT IN ('passed', 'near_duplicate')
