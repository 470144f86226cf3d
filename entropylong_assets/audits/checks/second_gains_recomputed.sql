-- The second model's gains and verdicts, from its stored entropies; each pair is one of the first's.
SELECT a.root_id, a.anchor, a.chunk_id, a.second_gain, a.holds, a.gain, p.gain AS stored
FROM audited AS a LEFT JOIN pairs AS p USING (root_id, anchor, chunk_id)
WHERE p.gain IS DISTINCT FROM a.gain OR p.accepted_by IS DISTINCT FROM a.accepted_by
   OR (second_entropy > 0
       AND (second_gain IS NULL OR holds <> (second_gain > $epsilon)
            OR abs(second_gain - (second_entropy::DOUBLE - second_entropy_context) / second_entropy)
               > 1e-9))
