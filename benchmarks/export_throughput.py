"""Throughput (MB of token ids per second) and peak memory of each export format.

    python -m benchmarks.export_throughput [--samples 512] [--folder FOLDER]

Baseline on the same disk with the same bytes: hashing and writing alone, without a format. Token
ids are random below 49,152, so that Parquet can't compress them better than real ones. Each format
runs three times, each time in a process of its own, and the fastest run counts: other work on the
machine can only slow a run. Its peak memory is compared with that of a quarter of the samples.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from entropylong_assets.project import make_project, open_store
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES, EntropyScoresSummary
from entropylong_assets.stages.entropy.tokenizer_facts import TokenizerFacts
from entropylong_assets.stages.retrieval.tables import (
    CANDIDATE_CONTEXTS,
    CandidateContextsSummary,
)
from entropylong_assets.stages.samples.shard_packing import SAMPLES_PER_WRITE
from entropylong_assets.stages.samples.tables import (
    LONG_CONTEXT_SAMPLES,
    LongContextSamplesSummary,
)
from entropylong_assets.stages.training_data.export import export_training_data
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.schemas import Summary, TableSet
from entropylong_assets.storage.tables import TableStore

TOKENS = 131_072
CONTEXTS = 300
REPEATS = 3
TARGET_MB_PER_SECOND = 150
SCORES = EntropyScoresSummary(
    documents=0,
    not_drawn=0,
    drawn=0,
    roots=0,
    dropped={},
    anchors=0,
    forward_tokens=0,
    model="generated",
    vocab_size=49_152,
)
CANDIDATES = CandidateContextsSummary(
    roots=0,
    anchors=0,
    candidates=0,
    near_duplicate=0,
    chunks=0,
    phrase_documents=0,
    dropped={},
    index="generated",
    excluded_shards=[],
    search="exact",
    nprobes=None,
    refine_factor=None,
)
SAMPLES = LongContextSamplesSummary(
    samples=0,
    roots=0,
    roots_packed=0,
    roots_dropped={},
    contexts_dropped={},
    dependencies=0,
    dependencies_packed=0,
    dependencies_dropped={},
    negatives_available=0,
    negatives_packed=0,
    tokens={},
    utilisation=None,
    tokenizer=TokenizerFacts(
        model="generated",
        vocab_size=49_152,
        pad_id=3,
        pad_token="<pad>",
        eos_id=2,
        eos_token="</s>",
        bos_id=1,
        bos_token="<s>",
        sample_begins_with=(),
        separator="\n\n",
        separator_ids=(4,),
        sample_tokens=TOKENS,
    ),
)
UPSTREAM: dict[TableSet[Any], Summary | None] = {
    CORPUS_DOCUMENTS: None,
    ENTROPY_SCORES: SCORES,
    CANDIDATE_CONTEXTS: CANDIDATES,
    VERIFIED_DEPENDENCIES: None,
}
"""Tables that an export reads besides the samples; all but the roots are empty here."""


def make_sample(name: str, number: int, rng: np.random.Generator) -> dict[str, pl.DataFrame]:
    """Return the rows of one sample: a root after its contexts, each with one dependency."""
    width = TOKENS // (CONTEXTS + 1)
    start = np.arange(CONTEXTS + 1) * width
    end = np.append(start[1:], TOKENS)
    root = f"{number:032x}"
    documents = [f"{number * 1000 + i:032x}" for i in range(1, CONTEXTS + 1)]
    chunks = [f"{document}-0" for document in documents]
    owner = {"sample_id": pl.lit(name), "root_id": pl.lit(root)}
    counts = {"n_root": width, "n_verified": TOKENS - width, "n_negative": 0, "n_padding": 0}
    ids = pl.Series("input_ids", rng.integers(0, 49_152, (1, TOKENS), dtype=np.uint32))
    segments = {
        "segment": range(CONTEXTS + 1),
        "role": ["verified"] * CONTEXTS + ["root"],
        "start": start,
        "end": end,
        "doc_id": [*documents, root],
        "chunk_id": [*chunks, None],
    }
    figures = ("gain", "calibrated_gain", "entropy", "entropy_context")
    dependencies = {
        "chunk_id": chunks,
        "context_start": start[:-1],
        "context_end": end[:-1],
        "evidence_start": start[:-1] + 10,
        "evidence_end": start[:-1] + 40,
        **{figure: rng.random(CONTEXTS, np.float32) for figure in figures},
    }
    constants: dict[str, Any] = {"anchor": 50, "rank": 1, "distance": 1000, "kind": "definition"}
    constants["anchor_position"] = TOKENS - width + 50
    return {
        "samples": pl.DataFrame(
            {"sample_id": [name]} | {k: [v] for k, v in counts.items()}
        ).with_columns(ids.arr.to_list()),
        "segments": pl.DataFrame(segments).with_columns(**owner, source=pl.lit("web")),
        "dependencies": pl.DataFrame(dependencies).with_columns(
            **owner, **{name: pl.lit(value) for name, value in constants.items()}
        ),
    }


def make_root(number: int) -> dict[str, Any]:
    """Return the row of a sample's root, of which only the anchors are read."""
    figures = {"token_ids": [0], "entropies": [None], "surprisals": [None], "by_surprisal": []}
    moments = dict.fromkeys(("mean", "std", "threshold", "surprisal_mean", "surprisal_std"), 0.0)
    return {"root_id": f"{number:032x}", "anchors": [*range(100, 400)]} | figures | moments


def make_store(folder: str, n_samples: int, per_shard: int = 64) -> list[str]:
    """Write samples with as many segments and dependencies as real ones; return the shards."""
    store, rng, shards = TableStore(folder), np.random.default_rng(0), []
    for first in range(0, n_samples, per_shard):
        shard = f"web-{first // per_shard:05d}"
        shards.append(shard)
        for tables, summary in UPSTREAM.items():
            with store.write(tables, shard, fingerprint="bench") as writer:
                writer.summary = summary.model_dump() if summary else {}
                if tables is ENTROPY_SCORES:
                    numbers = range(first, min(first + per_shard, n_samples))
                    writer.append("roots", [make_root(number) for number in numbers])
        with store.write(LONG_CONTEXT_SAMPLES, shard, fingerprint="bench") as writer:
            writer.summary = SAMPLES.model_dump()
            for start in range(first, min(first + per_shard, n_samples), SAMPLES_PER_WRITE):
                numbers = range(start, min(start + SAMPLES_PER_WRITE, n_samples))
                samples = [make_sample(f"{shard}-{number:05d}", number, rng) for number in numbers]
                for name in ("samples", "segments", "dependencies"):
                    writer.append(name, pl.concat([sample[name] for sample in samples]))
    return shards


def export_one(folder: str, form: str, shards: list[str]) -> None:
    """Export in one format and print seconds and peak memory as JSON; for a process of its own."""
    export_settings = {"formats": [form], "validation_fraction": 0.1}
    settings = make_project({"data_uri": folder, "export": export_settings}).dataset
    times: list[float] = []
    cpu = time.process_time()
    start = time.perf_counter()
    export = export_training_data(
        open_store(settings),
        shards,
        settings,
        code_version="bench",
        overwrite=True,
        on_progress=lambda *_: times.append(time.perf_counter()),
    )
    end = time.perf_counter()
    written = sum(file["bytes"] for file in export.manifest["files"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cpu = time.process_time() - cpu
    result = {
        "seconds": end - start,
        "cpu_seconds": cpu,
        "samples_s": end - times[0],
        "written": written / 1e6,
    }
    print(json.dumps(result | {"peak_mib": peak}))


def baseline(folder: str, megabytes: int) -> float:
    """Return the seconds to hash and write this many MB without a format."""
    block = np.random.default_rng(0).integers(0, 2**32, 250_000, dtype=np.uint32).data
    path = Path(folder) / "baseline"
    start = time.perf_counter()
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(megabytes):
            digest.update(block)
            file.write(block)
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--folder", help="where the temporary files go")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        export_one(options.one[0], options.one[1], options.one[2].split(","))
        return
    results = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        shards = make_store(folder, options.samples)
        megabytes = options.samples * TOKENS * 4 / 1e6
        raw = megabytes / baseline(folder, int(megabytes))
        print(f"{options.samples} samples, {megabytes:.0f} MB of token ids")
        print(f"hash and write alone: {raw:.0f} MB/s")
        for form in ("mds", "megatron", "parquet"):
            runs = []
            for part in (shards[: max(1, len(shards) // 4)], *[shards] * REPEATS):
                command = [sys.executable, "-m", "benchmarks.export_throughput", "--one"]
                command += [folder, form, ",".join(part)]
                out = subprocess.run(command, capture_output=True, text=True, check=True)
                runs.append(json.loads(out.stdout))
            quarter, whole = runs[0], min(runs[1:], key=lambda run: run["seconds"])
            rate = megabytes / whole["seconds"]
            results[form] = whole | {"mb_per_second": rate, "peak_quarter": quarter["peak_mib"]}
            print(
                f"{form:9s} {rate:6.0f} MB/s of token ids ({whole['seconds']:.1f} s, of that "
                f"samples {whole['samples_s']:.1f} s; {whole['cpu_seconds']:.1f} s of CPU; "
                f"{whole['written']:.0f} MB written); peak memory {whole['peak_mib']:.0f} MiB, "
                f"a quarter of the samples {quarter['peak_mib']:.0f} MiB"
            )
    for form in ("mds", "megatron"):
        ratio = results[form]["mb_per_second"] / TARGET_MB_PER_SECOND
        print(f"claim name=export_{form} ratio={ratio:.2f} target=1.00 differences=0")


if __name__ == "__main__":
    main()
