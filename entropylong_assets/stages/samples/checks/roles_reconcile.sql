-- Tokens by role add up to the sample's own counts.
WITH counted AS (
    SELECT sample_id,
           coalesce(sum("end" - start) FILTER (role = 'root'), 0) AS root,
           coalesce(sum("end" - start) FILTER (role = 'verified'), 0) AS verified,
           coalesce(sum("end" - start) FILTER (role IN ('hard_negative', 'unverified', 'filler')), 0)
               AS negative,
           coalesce(sum("end" - start) FILTER (role = 'padding'), 0) AS padding,
           count(*) FILTER (role NOT IN ('bos', 'root', 'verified', 'hard_negative',
                                              'unverified', 'filler', 'padding'))
               AS unknown_roles
    FROM segments GROUP BY sample_id
)
SELECT sample_id, n_root, root, n_verified, verified, n_negative, negative, n_padding, padding,
       unknown_roles
FROM samples LEFT JOIN counted USING (sample_id)
WHERE (n_root, n_verified, n_negative, n_padding) IS DISTINCT FROM (root, verified, negative, padding)
   OR unknown_roles > 0
