SELECT sample_id, len(input_ids) AS tokens FROM samples WHERE len(input_ids) <> $sample_tokens
