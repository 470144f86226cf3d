-- Gains and verdicts, computed again from the stored entropies and surprisals. Verdicts of the
-- built-in rules are computed here; of a rule of another package they must agree with each other.
WITH base AS (
    SELECT *, entropy::DOUBLE AS h, entropy_context::DOUBLE AS h_context,
           least(entropy, entropy_control)::DOUBLE AS reference,
           least(surprisal, surprisal_control)::DOUBLE AS lower_surprisal,
           surprisal_context < least(surprisal, surprisal_control) AS likelier,
           greatest(1.0, counted_documents / $limits_hold_up_to::DOUBLE) AS larger
    FROM pairs
),
gains AS (
    SELECT *,
           CASE WHEN h > 0 THEN (h - h_context) / h END AS g,
           CASE WHEN h > 0 AND entropy_control IS NOT NULL THEN (reference - h_context) / h END
               AS cg
    FROM base
),
refusals AS (
    SELECT *,
           -- Why rule genuine rejects a pair; null if it accepts it.
           CASE WHEN entropy_control IS NULL THEN 'no_control'
                WHEN word IS NULL THEN 'no_word'
                WHEN list_contains($excluded_anchors, anchor_kind) THEN 'excluded_anchor'
                WHEN coalesce(cg <= $min_calibrated_gain, true) THEN 'gain_too_small'
                WHEN coalesce((lower_surprisal - surprisal_context) / lower_surprisal
                              <= $min_surprisal_gain, true) THEN 'surprisal_gain_too_small'
                WHEN NOT coalesce(has_word, false) THEN 'word_not_in_context'
                WHEN phrase_documents > $max_phrase_documents * larger
                     OR pair_documents > $max_pair_documents * larger THEN 'common_phrase' END
               AS not_genuine
    FROM gains
),
verdicts AS (
    SELECT *,
           coalesce(g > $epsilon, false) AS plain,
           coalesce(cg > $epsilon AND (likelier OR NOT $require_surprisal_drop), false)
               AS calibrated,
           entropy_context IS NOT NULL AND not_genuine IS NULL AS genuine,
           word IS NOT NULL AND NOT coalesce(list_contains($excluded_anchors, anchor_kind), false)
               AND coalesce(has_word, false)
               AND NOT coalesce(phrase_documents > $max_phrase_documents * larger
                                OR pair_documents > $max_pair_documents * larger, false)
               AS may_be_genuine
    FROM refusals
),
reasons AS (
    SELECT *,
           CASE $rule WHEN 'plain' THEN plain
                      WHEN 'calibrated' THEN calibrated
                      WHEN 'genuine' THEN genuine
                      ELSE list_contains(accepted_by, $rule) END AS passes,
           CASE WHEN passes THEN 'accepted'
                WHEN $rule NOT IN ('plain', 'calibrated', 'genuine') THEN verdict
                WHEN $rule = 'genuine' THEN not_genuine
                WHEN $rule = 'calibrated' AND cg > $epsilon THEN 'surprisal_rose'
                WHEN $rule = 'calibrated' AND entropy_control IS NULL THEN 'no_control'
                ELSE 'gain_too_small' END AS reason
    FROM verdicts
)
SELECT root_id, anchor, chunk_id, gain, g AS recomputed, calibrated_gain,
       cg AS recomputed_calibrated, accepted_by, accepted, verdict
FROM reasons
WHERE (gain IS NULL) <> (g IS NULL) OR abs(gain - g) > 1e-9
   OR (calibrated_gain IS NULL) <> (cg IS NULL) OR abs(calibrated_gain - cg) > 1e-9
   OR list_contains(accepted_by, 'plain')
      <> (plain AND list_contains($evaluated_rules, 'plain'))
   OR list_contains(accepted_by, 'calibrated')
      <> (calibrated AND list_contains($evaluated_rules, 'calibrated'))
   OR list_contains(accepted_by, 'genuine')
      <> (genuine AND list_contains($evaluated_rules, 'genuine'))
   OR NOT list_has_all($evaluated_rules, accepted_by)
   OR len(list_distinct(accepted_by)) <> len(accepted_by)
   OR accepted <> passes
   OR accepted <> (verdict = 'accepted')
   OR (entropy_context IS NULL AND len(accepted_by) > 0)
   -- Rule genuine alone excludes by text; a pair that it could accept must have been scored.
   OR (verdict = 'excluded_by_text'
       AND (list_has_any($evaluated_rules, ['plain', 'calibrated'])
            OR (list_contains($evaluated_rules, 'genuine') AND may_be_genuine)))
   OR CASE WHEN entropy_context IS NULL
           THEN verdict NOT IN
               ('near_duplicate', 'too_long_for_model', 'not_tried', 'screened_out',
                'excluded_by_text')
           ELSE verdict <> reason END
