SELECT chunk_id, length
FROM (SELECT chunk_id, sqrt(list_dot_product(vector::FLOAT[], vector::FLOAT[])) AS length FROM vectors)
WHERE length IS NULL OR isnan(length) OR abs(length - 1) > 1e-3
