WITH lengths AS (
    SELECT chunk_id,
           CASE WHEN vector IS NOT NULL
                THEN sqrt(list_dot_product(vector::FLOAT[], vector::FLOAT[])) END AS length
    FROM vectors
)
SELECT chunk_id, length
FROM lengths
WHERE length IS NULL OR isnan(length) OR abs(length - 1) > 1e-3
