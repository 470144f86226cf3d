"""The report on a dataset of 1,000 samples: time to make it, its size, and time to open it.

    python -m benchmarks.report_scale [--samples 1000]

The tables have the size of a real dataset (15 roots per sample, 40 anchors per root, 8 candidates
per anchor: 4.8 million pairs) and generated values. Baseline: the report on a tenth of the samples.
It must open as fast, because what the report shows in full does not grow with the dataset.
Needs Debian's package `chromium`.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import shutil
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from entropylong_assets.project import make_project, open_store
from entropylong_assets.report.page import make_report
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES, EntropyScoresSummary
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.report.runs import byte_tokenizer

SAMPLES_PER_SHARD, ROOTS_PER_SAMPLE, ROOT_TOKENS, ANCHORS, K = 100, 15, 800, 40, 8
CONTEXTS_PER_ROOT = 39
SAMPLE_TOKENS = 131_072
TARGET_SECONDS = 3.0
"""Maximum time to open the report."""


def hashes(prefix: str, count: int) -> list[str]:
    return [hashlib.md5(f"{prefix}{i}".encode()).hexdigest() for i in range(count)]


def write_shard(store: TableStore, number: int, samples: int) -> None:
    rng = np.random.default_rng(number)
    shard = f"web-{number:05d}"
    roots = hashes(f"root-{number}-", samples * ROOTS_PER_SAMPLE)
    chunks = [f"{doc}-00000" for doc in hashes(f"context-{number}-", 5000)]
    entropies = rng.gamma(2, 1.2, (len(roots), ROOT_TOKENS)).astype(np.float32)
    positions = np.tile(np.arange(32, ROOT_TOKENS), (len(roots), 1))
    anchors = np.sort(rng.permuted(positions, axis=1)[:, :ANCHORS], axis=1).astype(np.int32)
    with store.write(CORPUS_DOCUMENTS, shard, fingerprint="bench") as writer:
        constant = {"source": "web", "file": "f", "license": "x", "text": "x"}
        writer.append(
            "documents",
            [
                {"doc_id": r, "row": i, "external_id": None, "n_chars": 1} | constant
                for i, r in enumerate(roots)
            ],
        )
    with store.write(ENTROPY_SCORES, shard, fingerprint="bench") as writer:
        writer.summary = EntropyScoresSummary(
            documents=len(roots),
            not_drawn=0,
            drawn=len(roots),
            roots=len(roots),
            dropped={},
            anchors=anchors.size,
            forward_tokens=entropies.size,
            model="generated",
            vocab_size=256,
        ).model_dump()
        ids = rng.integers(97, 122, entropies.shape).astype(np.uint32)
        moments = {"mean": 2.0, "std": 1.0, "surprisal_mean": 2.0, "surprisal_std": 1.0}
        flat = {n: np.full(len(roots), v) for n, v in (moments | {"threshold": 5.0}).items()}
        none = {"by_surprisal": pl.Series([[]] * len(roots), dtype=pl.List(pl.Int32))}
        lists = {"token_ids": ids, "entropies": entropies, "surprisals": entropies}
        columns = {n: pl.Series(v).arr.to_list() for n, v in (lists | {"anchors": anchors}).items()}
        writer.append("roots", pl.DataFrame({"root_id": roots} | columns | flat | none))
    n_pairs = len(roots) * ANCHORS * K
    key = {
        "root_id": np.repeat(np.array(roots), ANCHORS * K),
        "anchor": np.repeat(anchors.ravel(), K),
        "rank": np.tile(np.arange(1, K + 1, dtype=np.int32), len(roots) * ANCHORS),
        "chunk_id": np.array(chunks)[rng.integers(0, len(chunks), n_pairs)],
        "similarity": rng.random(n_pairs, np.float32),
    }
    with store.write(CANDIDATE_CONTEXTS, shard, fingerprint="bench") as writer:
        passed = {"containment": np.zeros(n_pairs, np.float32), "leak_check": ["passed"] * n_pairs}
        passed |= {"found_by": ["vector"] * n_pairs, "has_word": [True] * n_pairs}
        writer.append("candidates", pl.DataFrame(key | passed))
        place = {"shard": shard, "source": "web", "start": 0, "end": 9, "text": "lorem " * 200}
        writer.append("chunks", [{"chunk_id": c, "doc_id": c[:32]} | place for c in chunks])
    write_pairs(store, shard, rng, key, roots, anchors, entropies)
    write_samples(store, shard, rng, roots, chunks)


def write_pairs(
    store: TableStore,
    shard: str,
    rng: np.random.Generator,
    key: dict[str, object],
    roots: list[str],
    anchors: np.ndarray,
    entropies: np.ndarray,
) -> None:
    alone = np.repeat(np.take_along_axis(entropies, anchors, 1).ravel() + 1, K)
    gain = rng.normal(0.1, 0.2, len(alone))
    given = (alone * (1 - gain)).astype(np.float32)
    accepted = gain > 0.4
    scored = {
        **dict.fromkeys(("entropy", "entropy_control", "surprisal", "surprisal_control"), alone),
        **dict.fromkeys(("entropy_context", "surprisal_context"), given),
        **dict.fromkeys(("gain", "calibrated_gain"), gain),
        "accepted": accepted,
        "verdict": np.where(accepted, "accepted", "gain_too_small"),
        "word": np.full(len(alone), "lorem"),
        "anchor_kind": pl.Series([None] * len(alone), dtype=pl.String),
        "has_word": np.full(len(alone), True),
        **dict.fromkeys(
            ("phrase_documents", "pair_documents", "counted_documents"),
            np.ones(len(alone), np.int32),
        ),
    }
    n = anchors.size
    with store.write(VERIFIED_DEPENDENCIES, shard, fingerprint="bench") as writer:
        rules = pl.when("accepted").then(["plain", "calibrated"]).otherwise(pl.lit([]))
        pairs = pl.DataFrame(key | scored).with_columns(rules.alias("accepted_by"))
        writer.append("pairs", pairs)
        for control in (0, 1):
            rows = {
                "root_id": np.repeat(roots, ANCHORS),
                "control": np.full(n, control, np.int32),
                "anchor": anchors.ravel(),
                "has_word": np.full(n, False),
                "entropy": rng.random(n, np.float32) * 5,
                "surprisal": rng.random(n, np.float32) * 5,
            }
            writer.append("controls", pl.DataFrame(rows))


def segment(
    role: str, start: int, end: int, root: str | None = None, chunk: str | None = None
) -> dict[str, object]:
    return {
        "role": role,
        "start": start,
        "end": end,
        "root_id": root,
        "doc_id": chunk[:32] if chunk else root,
        "chunk_id": chunk,
        "source": "web" if root else None,
    }


def write_samples(
    store: TableStore, shard: str, rng: np.random.Generator, roots: list[str], chunks: list[str]
) -> None:
    group = SAMPLE_TOKENS // ROOTS_PER_SAMPLE
    with store.write(LONG_CONTEXT_SAMPLES, shard, fingerprint="bench") as writer:
        for number in range(len(roots) // ROOTS_PER_SAMPLE):
            sample = {"sample_id": f"{shard}-{number:05d}"}
            segments: list[dict[str, object]] = []
            dependencies: list[dict[str, object]] = []
            for place in range(ROOTS_PER_SAMPLE):
                root = roots[number * ROOTS_PER_SAMPLE + place]
                start, end = place * group, (place + 1) * group - ROOT_TOKENS
                cuts = np.linspace(start, end, CONTEXTS_PER_ROOT + 1).astype(int).tolist()
                for left, right in pairwise(cuts):
                    chunk = chunks[len(segments) % len(chunks)]
                    segments.append(segment("verified", left, right, root, chunk))
                    dependencies.append(
                        sample
                        | {"root_id": root, "anchor": 50, "chunk_id": chunk, "rank": 1,
                           "anchor_position": end + 50, "context_start": left,
                           "context_end": right, "distance": end + 50 - right,
                           "gain": float(rng.random()), "calibrated_gain": 0.5, "entropy": 5.0,
                           "entropy_context": 1.0}
                    )  # fmt: skip
                segments.append(segment("root", end, end + ROOT_TOKENS, root))
            full = ROOTS_PER_SAMPLE * group
            if full < SAMPLE_TOKENS:
                segments.append(segment("padding", full, SAMPLE_TOKENS))
            tokens = ROOTS_PER_SAMPLE * ROOT_TOKENS
            counts = {"n_root": tokens, "n_verified": full - tokens, "n_negative": 0}
            ids = rng.integers(97, 122, (1, SAMPLE_TOKENS)).astype(np.uint32)
            row = sample | counts | {"n_padding": SAMPLE_TOKENS - full}
            frame = pl.DataFrame([row])
            writer.append("samples", frame.with_columns(pl.Series("input_ids", ids).arr.to_list()))
            numbered = [sample | {"segment": i} | row for i, row in enumerate(segments)]
            writer.append("segments", numbered)
            writer.append("dependencies", dependencies)


def seconds_to_open(file: Path, repeats: int = 5) -> tuple[float, float]:
    """Return the median seconds until all charts are drawn, and until another sample is shown."""
    from playwright.sync_api import sync_playwright

    opened, switched = [], []
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for _ in range(repeats):
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            start = time.perf_counter()
            page.goto(file.as_uri())
            page.wait_for_selector("body[data-charts]", timeout=120_000)
            opened.append(time.perf_counter() - start)
            samples = page.locator("#samples select").first
            last = samples.locator("option").count() - 1
            start = time.perf_counter()
            samples.select_option(index=min(3, last))
            page.evaluate("() => new Promise(requestAnimationFrame)")
            switched.append(time.perf_counter() - start)
            page.close()
        browser.close()
    return statistics.median(opened), statistics.median(switched)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1000)
    options = parser.parse_args()
    opened = {}
    with tempfile.TemporaryDirectory() as folder:
        for samples in (max(1, options.samples // 10), options.samples):
            settings = make_project({"data_uri": f"{folder}/{samples}"}).dataset
            store = open_store(settings)
            for number, first in enumerate(range(0, samples, SAMPLES_PER_SHARD)):
                write_shard(store, number, min(SAMPLES_PER_SHARD, samples - first))
            start = time.perf_counter()
            page = make_report(settings, tokenizer_for=byte_tokenizer)
            seconds = time.perf_counter() - start
            file = Path(folder) / f"{samples}.html"
            file.write_text(page, encoding="utf-8")
            opened[samples], switched = seconds_to_open(file)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"{samples} samples: made in {seconds:.1f} s (peak {peak:.0f} MiB), "
                f"{file.stat().st_size / 1e6:.1f} MB, opened in {opened[samples]:.2f} s, "
                f"another sample in {switched:.2f} s",
                flush=True,
            )
    few, many = opened.values()
    print(f"claim name=report_opens ratio={many / TARGET_SECONDS:.2f} target=1.00 differences=0")
    print(f"claim name=report_flat ratio={many / few:.2f} target=1.50 differences=0")


if __name__ == "__main__":
    main()
