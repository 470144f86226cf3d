"""Reads an export with the real libraries and prints what they give, as JSON.

    python read_export.py mds|parquet|megatron <export> <scratch>

Runs in the readers' own environment (requirements.txt); imports nothing of the package.
"""

from __future__ import annotations

import hashlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from formats import collate_like_prolong


def digest(values: Any) -> str:
    return hashlib.sha256(np.asarray(values, np.int64).tobytes()).hexdigest()


def read_mds(export: Path, scratch: Path) -> list[dict[str, Any]]:
    # Its own imports pull in torchvision, of which an export has no need.
    sys.modules["streaming.vision"] = types.ModuleType("streaming.vision")
    from streaming import Stream, StreamingDataset

    found = []
    for split in sorted(path.name for path in (export / "mds").iterdir()):
        folders = sorted(path for path in (export / "mds" / split).iterdir())
        # As ProLong names its streams, and once as from a remote store with hashes checked.
        in_place = [Stream(remote=str(f), local=str(f)) for f in folders]
        fetched = [
            Stream(remote=str(f), local=str(scratch / split / f.name), validate_hash="sha256")
            for f in folders
        ]
        for streams in (in_place, fetched):
            dataset = StreamingDataset(streams=streams, shuffle=False, batch_size=1)
            for sample in dataset:
                batch = collate_like_prolong(sample, apply_masks=True)
                dependencies = sample["provenance"]["dependencies"]
                spans = zip(
                    dependencies["context_start"],
                    dependencies["context_end"],
                    dependencies["anchor_position"],
                    strict=True,
                )
                found.append(
                    {
                        "sample_id": sample["provenance"]["sample_id"],
                        "split": split,
                        "ids": digest(sample["input_ids"]),
                        "types": {
                            n: str(v.dtype) for n, v in sample.items() if hasattr(v, "dtype")
                        },
                        "indices": sample["indices"].tolist(),
                        "length": sample["length"],
                        "domain": sample["domain"],
                        "learnt": int((batch["labels"] != -100).sum()),
                        "dependencies": len(dependencies["anchor_position"]),
                        "in_one_span": sum(
                            bool(
                                set(batch["span"][start:end]) == {batch["span"][anchor]}
                                and batch["labels"][anchor] != -100
                            )
                            for start, end, anchor in spans
                        ),
                    }
                )
    return found


def read_parquet(export: Path, scratch: Path) -> list[dict[str, Any]]:
    from datasets import load_dataset

    return [
        {
            "sample_id": row["sample_id"],
            "split": str(split),
            "ids": digest(row["input_ids"]),
            "learnt": sum(row["loss_mask"]),
            "segments": len(row["segments"]),
            "dependencies": len(row["dependencies"]),
        }
        for split, rows in load_dataset(str(export), cache_dir=str(scratch)).items()
        for row in rows
    ]


def read_megatron(export: Path, _: Path) -> list[dict[str, Any]]:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    found = []
    for path in sorted((export / "megatron").glob("*.idx")):
        dataset = IndexedDataset(str(path.with_suffix("")))
        assert dataset.document_indices.tolist() == list(range(len(dataset) + 1))
        found += [
            {"split": path.name.partition("-")[0], "ids": digest(dataset[i])}
            for i in range(len(dataset))
        ]
    return found


if __name__ == "__main__":
    reader = {"mds": read_mds, "parquet": read_parquet, "megatron": read_megatron}[sys.argv[1]]
    print(json.dumps(reader(Path(sys.argv[2]), Path(sys.argv[3]))))
