SELECT recall, recall_queries FROM summary WHERE recall < $target_recall
