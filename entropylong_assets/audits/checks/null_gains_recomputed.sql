-- Gains, and the verdicts that follow from them alone, once more from the stored entropies.
SELECT root_id, anchor, kind, gain, (entropy::DOUBLE - entropy_context) / entropy AS recomputed
FROM trials
WHERE entropy > 0
  AND (gain IS NULL OR abs(gain - (entropy::DOUBLE - entropy_context) / entropy) > 1e-9
       OR list_contains(accepted_by, 'plain')
          <> (list_contains($evaluated_rules, 'plain') AND gain > $epsilon)
       OR (list_contains(accepted_by, 'calibrated') AND NOT calibrated_gain > $epsilon)
       OR isnan(entropy_context) OR isnan(surprisal_context))
