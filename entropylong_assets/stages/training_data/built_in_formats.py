"""The export formats of this package: importing this module registers them."""

from entropylong_assets.stages.training_data import jsonl, mds, megatron, nanotron, olmo, parquet

__all__ = ["jsonl", "mds", "megatron", "nanotron", "olmo", "parquet"]
