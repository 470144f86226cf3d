-- Lengths are of the canonical text and within the limits of the settings.
SELECT doc_id, n_chars
FROM documents
WHERE trim(text) = '' OR n_chars <> length(text)
   OR n_chars NOT BETWEEN $min_chars AND $max_chars
