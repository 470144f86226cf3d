-- Gains and the plain verdict once more, from the stored entropies.
SELECT root_id, anchor, kind, gain, (entropy::DOUBLE - entropy_context) / entropy AS recomputed
FROM trials
WHERE entropy > 0
  AND (gain IS NULL OR abs(gain - (entropy::DOUBLE - entropy_context) / entropy) > 1e-9
       OR accepted_plain <> (gain > $epsilon)
       OR (accepted_calibrated AND NOT calibrated_gain > $epsilon)
       OR isnan(entropy_context) OR isnan(surprisal_context))
