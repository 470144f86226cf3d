SELECT root_id, anchor, chunk_id, containment, leak_check
FROM candidates
WHERE containment NOT BETWEEN 0 AND 1
   OR (leak_check = 'near_duplicate') <> (containment >= $max_containment::FLOAT)
   OR leak_check NOT IN ('passed', 'near_duplicate')
