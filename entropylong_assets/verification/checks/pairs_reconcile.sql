-- Every candidate became one pair.
SELECT coalesce(c.root_id, p.root_id) AS root_id, coalesce(c.anchor, p.anchor) AS anchor,
       c.chunk_id AS candidate, p.chunk_id AS pair
FROM candidates AS c FULL JOIN pairs AS p
  ON c.root_id = p.root_id AND c.anchor = p.anchor AND c."rank" = p."rank"
WHERE c.chunk_id IS DISTINCT FROM p.chunk_id
