"""Near-duplicates and decontamination: recall, precision, time and memory.

    python -m benchmarks.near_duplicates --documents 100000 --orders 2
    python -m benchmarks.near_duplicates --documents 1000000
    python -m benchmarks.near_duplicates --decontamination [--tokenizer MODEL]

One size per process, since the peak of the memory is that of the process. Documents have 60 to 180
words of a Zipf distribution; one in ten is a copy of another with 5, 10 or 20% of its words
replaced, or with its halves exchanged; a quarter of the originals is Chinese or Hindi.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from entropylong_assets.project import make_project, open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.corpus.evaluation_sets import build_index, find_overlaps
from entropylong_assets.stages.corpus.listing import list_files
from entropylong_assets.stages.corpus.readers import read_rows
from entropylong_assets.stages.corpus.rows import Row
from entropylong_assets.stages.corpus.settings import EvaluationSet, SourceSettings
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.near_duplicates.stages import (
    DOCUMENT_SIGNATURES_STAGE,
    NEAR_DUPLICATES_STAGE,
)
from entropylong_assets.stages.near_duplicates.tables import NEAR_DUPLICATES
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.text_units import split_units
from entropylong_assets.storage.manifest import CheckOutcome
from entropylong_assets.storage.tables import WHOLE

SHARD = 50_000
KINDS = ("edits of 5%", "edits of 10%", "edits of 20%", "halves exchanged")
SHARES = (0.05, 0.1, 0.2, 0.0)
SCRIPTS = ("Latin", "Latin", "Latin", "Latin", "Latin", "Latin", "Chinese", "Hindi")
_SYLLABLES = {
    "Latin": [c + v for c in "bcdfghjklmnprstvwz" for v in ("a", "e", "i", "o", "u", "an", "er")],
    "Hindi": [chr(c) + v for c in range(0x915, 0x939) for v in ("", "ा", "ि", "ी", "े")],
}


def vocabularies() -> dict[str, list[str]]:
    """2^18 words per script, drawn from 30,000 by Zipf's law; Chinese: 3,000 ideographs."""
    draw = np.random.default_rng(0)
    by_script = {}
    for script in ("Latin", "Chinese", "Hindi"):
        if script == "Chinese":
            words = [chr(0x4E00 + i) for i in range(3000)]
        else:
            parts = draw.choice(_SYLLABLES[script], (30_000, 3))
            words = ["".join(row[: 1 + i % 3]) for i, row in enumerate(parts)]
        weights = 1 / np.arange(3, len(words) + 3)
        by_script[script] = list(draw.choice(words, 2**18, p=weights / weights.sum()))
    return by_script


def documents(
    count: int, first: int, words: dict[str, list[str]]
) -> Iterator[tuple[str, str, int]]:
    """Yield text, kind and group of documents `first` to `first + count`."""
    for number in range(first, first + count):
        copied = number % 10 == 9
        group = number - 1 - (number // 10) % 8 if copied else number
        draw = np.random.default_rng(group)
        script = SCRIPTS[group % len(SCRIPTS)]
        chosen = words[script]
        places = draw.integers(0, len(chosen), int(draw.integers(60, 180)))
        text = [chosen[i] for i in places]
        kind = "original"
        if copied:
            which = (number // 80) % len(KINDS)
            kind, again = f"{KINDS[which]}, {script}", np.random.default_rng(10**9 + number)
            for i in np.flatnonzero(again.random(len(text)) < SHARES[which]):
                text[i] = chosen[again.integers(0, len(chosen))]
            if which == 3:
                text = text[len(text) // 2 :] + text[: len(text) // 2]
        yield ("" if script == "Chinese" else " ").join(text), kind, group


def doc_id(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def settings_in(folder: Path) -> Settings:
    return make_project({"data_uri": str(folder)}).corpus


def write_shards(folder: Path, count: int, reverse: bool) -> list[str]:
    """Write the documents; reversed: other shards, in the opposite order."""
    words, store, shards = vocabularies(), open_store(settings_in(folder)), []
    size = SHARD - 7001 if reverse else SHARD
    starts = list(range(0, count, size))
    checks = ("unique_documents", "no_empty_text", "rows_reconcile", "few_bad_rows")
    passed = CheckOutcome(passed=True, blocking=True, faulty_rows=0)
    for number, first in enumerate(reversed(starts) if reverse else starts):
        shard = f"s-{number:05d}"
        rows = list(documents(min(size, count - first), first, words))
        texts = [text for text, _, _ in rows]
        frame = pl.DataFrame({"text": texts, "doc_id": map(doc_id, texts)}).unique(
            "doc_id", maintain_order=True
        )
        frame = frame.with_columns(
            source=pl.lit("web"), file=pl.lit("f"), license=pl.lit("cc0-1.0"),
            external_id=pl.lit(None, pl.String), row=pl.int_range(pl.len()),
            n_chars=pl.col("text").str.len_chars(),
        )  # fmt: skip
        with store.write(CORPUS_DOCUMENTS, shard, fingerprint="f") as writer:
            writer.append("documents", frame)
            writer.summary = {"rows_read": 0, "documents": 0, "chars": 0, "dropped": {}}
        store.record_checks(CORPUS_DOCUMENTS, shard, dict.fromkeys(checks, passed))
        shards.append(shard)
    return shards


def find(folder: Path, shards: Sequence[str]) -> dict[str, Any]:
    """Run both stages in this process; return CPU seconds and peak memory.

    CPU seconds are used because other work may run on the machine.
    """
    settings = settings_in(folder)
    store = open_store(settings)
    before, start, wall = _peak(), time.process_time(), time.perf_counter()
    for shard in shards:
        materialize(DOCUMENT_SIGNATURES_STAGE, Partition(settings, store, shard))
        for result in run_checks(DOCUMENT_SIGNATURES_STAGE, Partition(settings, store, shard)):
            assert result.passed
    signed = time.process_time()
    materialize(NEAR_DUPLICATES_STAGE, Partition(settings, store))
    done = time.process_time()
    summary = store.summary(NEAR_DUPLICATES)
    return {
        "signatures, CPU seconds": round(signed - start, 1),
        "clusters, CPU seconds": round(done - signed, 1),
        "both, seconds": round(time.perf_counter() - wall, 1),
        "peak memory, GB": round(_peak(), 2),
        "before, GB": round(before, 2),
        **summary.model_dump(),
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def shingle_set(text: str, n: int = 3) -> set[tuple[str, ...]]:
    units = split_units(text)
    return {tuple(units[i : i + n]) for i in range(max(1, len(units) - n + 1))}


def grade(folder: Path, count: int) -> dict[str, Any]:
    """Recall of planted pairs, by kind and by their true similarity; precision of members."""
    members = open_store(settings_in(folder)).read(NEAR_DUPLICATES, WHOLE, "members")
    cluster = dict(members.select("doc_id", "representative").iter_rows())
    found, all_of = defaultdict(int), defaultdict(int)
    words, group_of = vocabularies(), {}
    recent: dict[int, str] = {}
    for text, kind, group in documents(count, 0, words):
        group_of[doc_id(text)] = group
        if kind == "original":
            recent[group] = text
            continue
        original = recent.get(group)
        if original is None or original == text:
            continue
        a, b = shingle_set(original), shingle_set(text)
        similarity = len(a & b) / len(a | b)
        ids = doc_id(original), doc_id(text)
        same = cluster.get(ids[0], ids[0]) == cluster.get(ids[1], ids[1])
        bins = ("0.8 to 1", "0.7 to 0.8", "0.6 to 0.7", "below 0.6")
        level = bins[sum(similarity < bound for bound in (0.8, 0.7, 0.6))]
        for name in (kind, f"Jaccard {level}"):
            all_of[name] += 1
            found[name] += same
        recent.pop(group - 100, None)
    right = sum(group_of[a] == group_of[b] for a, b in cluster.items())
    return {
        "recall": {name: [found[name], all_of[name]] for name in sorted(all_of)},
        "precision": [right, len(cluster)],
    }


def near_duplicates(count: int, orders: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        results = []
        for order in range(orders):
            place = Path(folder) / str(order)
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                shards = pool.submit(write_shards, place, count, bool(order)).result()
            results.append(find(place, shards))
            print(json.dumps({"documents": count, "order": order, **results[-1]}), flush=True)
        tables = [
            open_store(settings_in(Path(folder) / str(o))).read(NEAR_DUPLICATES, WHOLE, "members")
            for o in range(orders)
        ]
        print("the same in every order:", all(table.equals(tables[0]) for table in tables))
        print(json.dumps(grade(Path(folder) / "0", count), ensure_ascii=False, indent=1))


# Decontamination


def package_texts(packages: str) -> list[str]:
    source = SourceSettings(name="docs", kind="python_docs", uri=packages)
    return [
        item.text
        for file in list_files(source)
        for item in read_rows(file.uri, file.kind, source)
        if isinstance(item, Row) and len(item.text) >= 200
    ]


def changed(text: str, number: int) -> str:
    """The text with other white space, case or markup."""
    words = text.split()
    if number % 4 == 0:
        return "\n".join(words).upper()
    if number % 4 == 1:
        marked = [f"<b>{w}</b>" if i % 9 == 0 else w for i, w in enumerate(words)]
        return f"<p class='x'>{'&nbsp;'.join(marked)}</p>"
    if number % 4 == 2:
        marked = [
            f"[{w}](https://example.org/{i})" if i % 11 == 0 else w for i, w in enumerate(words)
        ]
        return "  ".join(f"**{w}**" if i % 7 == 0 else w for i, w in enumerate(marked))
    return "\t".join(w.capitalize() for w in words).replace(",", " ,")


def decontamination(evaluated: str, clean: str, tokenizer: str | None) -> None:
    """Passages of one package's documentation, planted in the documents of others.

    tokenizer: compare n-grams of its tokens; None: of words.
    """
    words = vocabularies()
    draw = np.random.default_rng(5)
    texts = package_texts(evaluated)
    texts += [text for text, _, group in documents(400, 0, words) if group % 8 in (6, 7)]
    index = build_index(EvaluationSet(name="docs", uri="-", tokenizer=tokenizer), iter(texts))
    others = package_texts(clean)
    start, found, exact = time.process_time(), 0, 0
    planted, missed = 1000, [0, 0, 0, 0]
    for number in range(planted):
        chosen = int(draw.integers(len(texts)))
        quoted = texts[chosen].split()
        if len(quoted) > 80:
            at = int(draw.integers(len(quoted) - 80))
            quoted = quoted[at : at + 80]
        host = others[number % len(others)]
        half = len(host) // 2
        document = f"{host[:half]}\n{changed(' '.join(quoted), number)}\n{host[half:]}"
        overlaps = find_overlaps([index], document)
        found += bool(overlaps)
        missed[number % 4] += not overlaps
        exact += bool(overlaps) and abs(overlaps[0].start - half) < 200
    seconds = time.process_time() - start
    synthetic = [text for text, _, _ in documents(20_000, 10**6, words)]
    wrong = [
        sum(bool(find_overlaps([index], text)) for text in part) for part in (others, synthetic)
    ]
    print(
        json.dumps(
            {
                **{k: v for k, v in index.figures.items() if k != "name"},
                "planted": planted, "found": found, "found at their place": exact,
                "missed by kind of change": missed,
                "documents per CPU second": round(planted / seconds),
                f"clean documents of {clean}": len(others), "of them dropped": wrong[0],
                "clean synthetic documents": len(synthetic), "of these dropped": wrong[1],
            }
        )
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int)
    parser.add_argument("--orders", type=int, default=1)
    parser.add_argument("--decontamination", action="store_true")
    parser.add_argument("--tokenizer", help="compare n-grams of this model's tokens, not of words")
    parser.add_argument("--evaluated", default="sklearn")
    parser.add_argument("--clean", default="torch,polars,transformers,dagster")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if arguments.documents:
        near_duplicates(arguments.documents, arguments.orders)
    if arguments.decontamination:
        decontamination(arguments.evaluated, arguments.clean, arguments.tokenizer)


if __name__ == "__main__":
    main()
