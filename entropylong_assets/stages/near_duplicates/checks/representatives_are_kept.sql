-- A representative is no member itself, and its id is smaller than those of its members.
SELECT doc_id, representative
FROM members
WHERE representative >= doc_id OR representative IN (SELECT doc_id FROM members)
