-- The queries are the same rows, apart from new ones, so a drop of 0.02 is not noise. With four
-- times the rows, a partition holds twice as many as in a new index.
SELECT recall_when_new, recall_unsteered, centroid_rows, n_rows
FROM summary
WHERE recall_unsteered < recall_when_new - 0.02 OR (centroid_rows > 0 AND n_rows > 4 * centroid_rows)
