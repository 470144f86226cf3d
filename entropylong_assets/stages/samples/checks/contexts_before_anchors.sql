-- Each dependency names a verified context that ends before its root, a position of its anchor
-- that follows from the root's segment, and an evidence span inside the context, if it has one.
SELECT d.sample_id, d.root_id, d.anchor, d.anchor_position, d.context_start, d.context_end
FROM dependencies AS d
LEFT JOIN segments AS c
  ON c.sample_id = d.sample_id AND c.start = d.context_start AND c."end" = d.context_end
 AND c.chunk_id = d.chunk_id AND c.root_id = d.root_id AND c.role = 'verified'
LEFT JOIN segments AS r
  ON r.sample_id = d.sample_id AND r.root_id = d.root_id AND r.role = 'root'
WHERE c.sample_id IS NULL OR r.sample_id IS NULL
   OR d.anchor_position <> r.start + d.anchor OR d.anchor_position >= r."end"
   OR (d.evidence_start IS NULL) <> (d.kind IS NULL)
   OR (d.evidence_end IS NULL) <> (d.kind IS NULL)
   OR d.evidence_start < d.context_start OR d.evidence_end <= d.evidence_start
   OR d.evidence_end > d.context_end
   OR d.context_end > r.start OR d.distance <> d.anchor_position - d.context_end
