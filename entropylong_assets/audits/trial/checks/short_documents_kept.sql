-- The loss on short documents against that of the model as it starts.
SELECT arm, tokens, value AS increase, low, high
FROM differences
WHERE measure = 'short/all' AND rival = 'start' AND value > $max_short_loss
