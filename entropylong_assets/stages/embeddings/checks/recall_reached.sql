-- The measured recall, if it is below the target.
SELECT recall, recall_queries FROM summary WHERE recall < $target_recall
