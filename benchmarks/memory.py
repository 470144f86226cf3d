"""Peak memory of every stage against the size of a shard.

    python -m benchmarks.memory [--documents 2000 20000 200000] [--roots 0.01] [--folder /tmp]

Each stage runs through its Dagster job, checks included, in a process of its own, over one shard
of synthetic documents. Its peak is the most resident memory of that process, its threads and the
files that it maps, less what the same process takes with the libraries loaded and both models in
memory (`before`). The scoring model and the embedder are tiny and random, for this is about rows
and not about weights; the chunks' vectors are clustered (benchmarks/vectors.py) and 384 wide, as
those of all-MiniLM-L6-v2. `--roots`: share of documents that become roots, with K = 8 candidates
an anchor, and so of what the later stages hold; of the candidates only some are scored
(8,000 tokens a root), all are read, judged and written.

Flat: the peak of the largest shard is less than twice that of the smallest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.claims import Claims
from benchmarks.vectors import Mixture

DIMENSION = 384
STAGES = (
    ("corpus_documents", "corpus_shard"),
    ("chunk_embeddings", "corpus_shard"),
    ("chunk_embeddings again", "corpus_shard"),
    ("embedding_index", None),
    ("entropy_scores", "corpus_shard"),
    ("candidate_contexts", "corpus_shard"),
    ("verified_dependencies", "corpus_shard"),
    ("long_context_samples", "corpus_shard"),
    ("training_dataset", None),
)


class ClusteredEmbedder:
    """Vectors of the mixture, by the hash of a text: no model, as fast as they are written."""

    def __init__(self, window_tokens: int) -> None:
        self.identity, self.dimension, self.window_tokens = "synthetic@1", DIMENSION, window_tokens
        self._pool_NE = Mixture(topics=200, groups=20_000, dimension=DIMENSION).draw(65_536, 1)

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [2 + len(text.split()) for text in texts]

    def embed(self, texts: list[str]) -> np.ndarray:
        digests = b"".join(hashlib.blake2b(t.encode(), digest_size=8).digest() for t in texts)
        numbers = np.frombuffer(digests, np.uint64)
        near, own = self._pool_NE[numbers % 65_536], self._pool_NE[numbers // 65_536 % 65_536]
        vectors_BE = 0.9 * near + 0.1 * own
        return (vectors_BE / np.linalg.norm(vectors_BE, axis=1, keepdims=True)).astype(np.float32)


def write_corpus(folder: Path, documents: int) -> None:
    """One Parquet file of documents of some 1,800 characters, in batches."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from entropylong_assets_tests.tiny_world import WORDS

    folder.mkdir(parents=True)
    words = np.array(WORDS)
    schema = pa.schema([("text", pa.large_string())])
    with pq.ParquetWriter(folder / "corpus.parquet", schema) as writer:
        for start in range(0, documents, 2000):
            draw = np.random.default_rng(start)
            chosen = words[draw.integers(0, len(words), (min(2000, documents - start), 280))]
            texts = [
                "\n".join(" ".join(row[i : i + 28]).capitalize() + "." for i in range(0, 280, 28))
                for row in chosen.tolist()
            ]
            writer.write_table(pa.table({"text": texts}, schema=schema))


def settings_of(folder: Path, documents: int, roots: float) -> Any:
    from entropylong_assets.settings.model import make_settings

    return make_settings(
        "calibrated",
        {
            "data_uri": str(folder / f"data-{documents}"),
            "corpus": {
                "sources": [{"name": "synthetic", "uri": str(folder / "corpus/*.parquet")}],
                "shard_rows": 1_000_000,
                "root_fraction": roots,
                "root_min_tokens": 20,
                "root_max_tokens": 900,
            },
            "scoring": {
                "model": str(folder / "models/llama"),
                "dtype": "float32",
                "max_forward_tokens_per_root": 8_000,
            },
            "embedding": {"model": str(folder / "models/bert"), "recall_queries": 50},
            "verification": {"epsilon": 0.1, "max_false_acceptance": 1.0},
            "entropy": {"alpha": 1.0, "min_anchor_position": 32},
        },
    )


class Watch(threading.Thread):
    """Most resident memory of this process, looked at every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._process, self._done = 0, psutil.Process(), threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def stop(self) -> int:
        self._done.set()
        return max(self.peak, self._process.memory_info().rss)


def run_stage(folder: Path, documents: int, roots: float, stage: str) -> None:
    """In a process of its own: makes one asset, and prints what it took."""
    os.environ["DAGSTER_HOME"] = str(folder / f"dagster-{documents}")
    Path(os.environ["DAGSTER_HOME"]).mkdir(exist_ok=True)
    import dagster as dg

    from entropylong_assets.definitions import build_definitions
    from entropylong_assets.orchestration.local_run import instance, register_shards
    from entropylong_assets.stages.embeddings import embedder
    from entropylong_assets.stages.entropy.model import load_scoring_model

    settings = settings_of(folder, documents, roots)
    synthetic = ClusteredEmbedder(64)
    embedder.load_embedder = lambda _: synthetic  # type: ignore[assignment, return-value]
    embedder.embedder_identity = lambda _: synthetic.identity
    load_scoring_model(settings.scoring)
    asset, again = stage.removesuffix(" again"), stage.endswith(" again")
    with instance() as there:
        definitions = build_definitions(settings).get_repository_def()
        plan = register_shards(settings, there)
        job = definitions.get_job("everything" if asset != "training_dataset" else "export")
        key = dg.AssetKey(asset)
        before, start, watch = psutil.Process().memory_info().rss, time.perf_counter(), Watch()
        watch.start()
        result = job.execute_in_process(
            instance=there,
            asset_selection=[key],
            partition_key=None if asset == "training_dataset" else plan.shards[0].key,
            run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
        )
        peak = watch.stop()
        assert result.success
        checks = [e.check_name for e in result.get_asset_check_evaluations() if not e.passed]
        made = there.get_latest_materialization_event(key)
    assert made is not None
    assert made.asset_materialization is not None
    rows = made.asset_materialization.metadata["dagster/row_count"].value
    print(
        json.dumps(
            {
                "documents": documents,
                "stage": asset + (" again" if again else ""),
                "rows": rows,
                "seconds": time.perf_counter() - start,
                "before_mib": before / 2**20,
                "peak_mib": peak / 2**20,
                "checks_failed": checks,
            }
        ),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, nargs="+", default=[2_000, 20_000, 200_000])
    parser.add_argument("--roots", type=float, default=0.01)
    parser.add_argument("--folder", default="/tmp")
    parser.add_argument("--stages", nargs="*", help="names of stages; all if none")
    parser.add_argument("--keep", action="store_true", help="take up what an earlier run left")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--out")
    args = parser.parse_args()
    folder = Path(args.folder) / "entropylong-memory"
    if args.stage:
        run_stage(folder, args.documents[0], args.roots, args.stage)
        return
    claims = Claims("memory")
    if not args.keep:
        shutil.rmtree(folder, ignore_errors=True)
    peaks: dict[str, list[float]] = {}
    for documents in args.documents:
        prepare(folder, documents)
        for stage, _ in STAGES:
            if args.stages and stage not in args.stages:
                continue
            command = [sys.executable, "-m", "benchmarks.memory", "--stage", stage]
            command += ["--documents", str(documents), "--roots", str(args.roots)]
            done = subprocess.run(
                [*command, "--folder", args.folder], stdout=subprocess.PIPE, text=True, check=False
            )
            if done.returncode:
                claims.note("failed", documents=documents, stage=stage, code=done.returncode)
                break
            found = json.loads(done.stdout.splitlines()[-1])
            claims.note("stage", **found)
            peaks.setdefault(stage, []).append(found["peak_mib"])
    for stage, of_sizes in peaks.items():
        name = stage.replace(" ", "_")
        claims.claim(f"{name}_grows", of_sizes[-1] / of_sizes[0], 2.0, 0, at_most=True)
        claims.claim(f"{name}_gib", max(of_sizes) / 1024, 4.0, 0, at_most=True)
    claims.finish(args.out)


def prepare(folder: Path, documents: int) -> None:
    """Corpus and models of one size; the stages before it are run in order."""
    from entropylong_assets_tests.tiny_world import write_models

    if not (folder / "models").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "models").mkdir()
        write_models(folder / "models")
    shutil.rmtree(folder / "corpus", ignore_errors=True)
    write_corpus(folder / "corpus", documents)


if __name__ == "__main__":
    main()
