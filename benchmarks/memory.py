"""Peak memory of every stage by the size of a shard.

    python -m benchmarks.memory [--documents 2000 20000 200000] [--roots 0.01] [--folder FOLDER]

Each stage runs through its Dagster job, checks included, in a process of its own, over one shard
of synthetic documents. `peak_mib` is the maximum resident memory of that process, mapped files
included; `before_mib` is its memory with libraries and models loaded, before the run. The scoring
model is tiny and random, since rows are measured and not weights. The chunks' vectors are clustered
(benchmarks/vectors.py) and have 384 dimensions, as those of all-MiniLM-L6-v2. `--roots` is the
share of documents that become roots, with K = 8 candidates per anchor. Only some candidates are
scored (8,000 tokens per root), but all are read, judged and written.

Targets: the peak of the largest shard is at most twice that of the smallest, and at most 4 GiB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil

from benchmarks.claims import Claims
from benchmarks.vectors import Mixture
from entropylong_assets.pipeline import STAGES
from entropylong_assets.project import Project, make_project
from entropylong_assets.stages.embeddings.chunk_stage import CHUNK_EMBEDDINGS_STAGE
from entropylong_assets.stages.embeddings.cutting import Workers

DIMENSION = 384
AGAIN = " again"
"""Suffix of a stage's name: the stage is run a second time, over its own output."""
RUNS = [
    name
    for stage in STAGES
    if stage.automation != "by_hand"
    for name in (stage.name, *([stage.name + AGAIN] if stage is CHUNK_EMBEDDINGS_STAGE else []))
]


class ClusteredEmbedder:
    """Chooses vectors of the mixture by the hash of a text, so embedding takes little time."""

    def __init__(self, window_tokens: int) -> None:
        self.identity, self.dimension, self.window_tokens = "synthetic@1", DIMENSION, window_tokens
        self.query = self.document = SimpleNamespace(prompt="")
        self.notes, self.cutting = (), Workers(2)
        self.ids_of, self.counting = None, self.count_tokens
        self._pool_NE = Mixture(topics=200, groups=20_000, dimension=DIMENSION).draw(65_536, 1)

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [2 + len(text.split()) for text in texts]

    def fits_window(self, texts: list[str]) -> list[bool]:
        return [True] * len(texts)

    def embed_queries(self, texts: list[str]) -> np.ndarray:
        return self.embed_documents(texts)

    def embed_documents(
        self,
        texts: list[str],
        n_tokens: Sequence[int] | None = None,  # noqa: ARG002
        token_ids: None = None,  # noqa: ARG002
    ) -> np.ndarray:
        digests = b"".join(hashlib.blake2b(t.encode(), digest_size=8).digest() for t in texts)
        numbers = np.frombuffer(digests, np.uint64)
        near, own = self._pool_NE[numbers % 65_536], self._pool_NE[numbers // 65_536 % 65_536]
        vectors_BE = 0.9 * near + 0.1 * own
        return (vectors_BE / np.linalg.norm(vectors_BE, axis=1, keepdims=True)).astype(np.float32)


def write_corpus(folder: Path, documents: int) -> None:
    """Write one Parquet file of documents of about 1,800 characters each."""
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


def project_for(folder: Path, documents: int, roots: float) -> Project:
    return make_project(
        {
            "data_uri": str(folder / f"data-{documents}"),
            "corpus": {
                "sources": [{"name": "synthetic", "uri": str(folder / "corpus/*.parquet")}],
                "shard_rows": 1_000_000,
            },
            "roots": {"fraction": roots, "min_tokens": 20, "max_tokens": 900},
            "scoring": {"model": str(folder / "models/llama"), "dtype": "float32"},
            "embedding": {"model": str(folder / "models/bert"), "recall_queries": 50},
            "verification": {
                "epsilon": 0.1,
                "max_false_acceptance": 1.0,
                "max_forward_tokens_per_root": 8_000,
            },
            "entropy": {"alpha": 1.0, "min_anchor_position": 32},
        },
    )


class Watch(threading.Thread):
    """Records the maximum resident memory of this process, sampled every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._process, self._done = 0, psutil.Process(), threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def stop(self) -> int:
        self._done.set()
        return max(self.peak, self._process.memory_info().rss)


def run_stage(folder: Path, documents: int, roots: float, run: str) -> None:
    """Materialize one stage and print its figures; for a process of its own."""
    os.environ["DAGSTER_HOME"] = str(folder / f"dagster-{documents}")
    from entropylong_assets.orchestration.build import build_definitions
    from entropylong_assets.orchestration.local_run import open_instance, register_shards
    from entropylong_assets.orchestration.naming import asset_key, prefixed
    from entropylong_assets.project import open_store
    from entropylong_assets.stages.embeddings import embedder
    from entropylong_assets.stages.entropy.model import load_scoring_model
    from entropylong_assets.storage.tables import WHOLE

    project = project_for(folder, documents, roots)
    synthetic = ClusteredEmbedder(64)
    embedder.load_embedder = lambda _: synthetic  # type: ignore[assignment, return-value]
    for side in ("document", "query"):
        identity = {"embedder": synthetic.identity, f"{side}_prompt": ""}
        setattr(embedder, f"{side}_identity", lambda _, identity=identity: identity)
    load_scoring_model(project.dataset.scoring)
    stage = next(stage for stage in STAGES if stage.name == run.removesuffix(AGAIN))
    settings = project.corpus if stage.scope == "corpus" else project.dataset
    with open_instance() as instance:
        repository = build_definitions(project).get_repository_def()
        shard = register_shards(project.corpus, instance).shards[0].key
        job = repository.get_job(prefixed(settings, stage.job.name))
        before, start, watch = psutil.Process().memory_info().rss, time.perf_counter(), Watch()
        watch.start()
        result = job.execute_in_process(
            instance=instance,
            asset_selection=[asset_key(settings, stage)],
            partition_key=shard if stage.partitioned else None,
            run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
        )
        peak = watch.stop()
        assert result.success
        checks = [e.check_name for e in result.get_asset_check_evaluations() if not e.passed]
    manifest = open_store(settings).require(stage.tables, shard if stage.partitioned else WHOLE)
    figures = {
        "documents": documents,
        "stage": run,
        "rows": manifest.tables[stage.tables.main].rows,
        "seconds": time.perf_counter() - start,
        "before_mib": before / 2**20,
        "peak_mib": peak / 2**20,
        "checks_failed": checks,
    }
    print(json.dumps(figures), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, nargs="+", default=[2_000, 20_000, 200_000])
    parser.add_argument("--roots", type=float, default=0.01)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--stages", nargs="*", help="names of stages; all if none")
    parser.add_argument("--keep", action="store_true", help="keep the folder of an earlier run")
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
        for stage in RUNS:
            if args.stages and stage not in args.stages:
                continue
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", "--stage", stage]
            command += ["--documents", str(documents), "--roots", str(args.roots)]
            done = subprocess.run(
                [*command, "--folder", args.folder], stdout=subprocess.PIPE, text=True, check=False
            )
            if done.returncode:
                claims.note("failed", documents=documents, stage=stage, code=done.returncode)
                break
            figures = json.loads(done.stdout.splitlines()[-1])
            claims.note("stage", **figures)
            peaks.setdefault(stage, []).append(figures["peak_mib"])
    for stage, of_sizes in peaks.items():
        name = stage.replace(" ", "_")
        claims.claim(f"{name}_grows", of_sizes[-1] / of_sizes[0], 2.0, 0, at_most=True)
        claims.claim(f"{name}_gib", max(of_sizes) / 1024, 4.0, 0, at_most=True)
    claims.finish(args.out)


def prepare(folder: Path, documents: int) -> None:
    """Write the corpus of one size, and the models if they are missing."""
    from entropylong_assets_tests.tiny_world import write_models

    if not (folder / "models").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "models").mkdir()
        write_models(folder / "models")
    shutil.rmtree(folder / "corpus", ignore_errors=True)
    write_corpus(folder / "corpus", documents)


if __name__ == "__main__":
    main()
