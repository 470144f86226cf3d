-- The share of control contexts that the rule in force accepts.
SELECT false_acceptance, false_acceptance_low, false_acceptance_high, interval_note
FROM summary
WHERE false_acceptance > $max_false_acceptance
