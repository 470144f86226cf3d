-- The share of random contexts that the rule in force would accept.
SELECT false_acceptance, false_acceptance_low, false_acceptance_high
FROM summary
WHERE false_acceptance > $max_false_acceptance
