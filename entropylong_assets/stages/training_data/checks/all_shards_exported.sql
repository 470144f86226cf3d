-- Registered shards that are not in the export, and why.
SELECT shard, reason FROM left_out ORDER BY shard
