"""Held-out text for evaluation, without documents that share text with a sample."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.audits.trial.folder import Rows, TrialError, TrialFolder, pad_rows
from entropylong_assets.settings.section import NAME_PATTERN
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.ngrams import distinct, hash_runs
from entropylong_assets.stages.samples.ordering import hash_key
from entropylong_assets.storage.tables import TableStore

GRAM = 13
"""Tokens of a run that two texts share only if one was copied (as GPT-3's decontamination does with
words)."""
TEXTS_PER_BATCH = 1024
MAX_SHARED = 0.05
"""A document is left out if a larger share of its runs of GRAM tokens is in the samples."""

_WORD = re.compile(r"\b[a-z]{4,12}\b")

HashesN = NDArray[np.uint64]


def gram_hashes(token_ids_T: NDArray[Any]) -> HashesN:
    """Hash of each run of GRAM tokens; none for a shorter text."""
    return hash_runs(token_ids_T.astype(np.uint64), GRAM)


def gram_set(samples: Iterable[Rows]) -> HashesN:
    """The different hashes of all samples, sorted (8 bytes each)."""
    known = np.zeros(0, np.uint64)
    for rows in samples:
        hashes = [
            gram_hashes(ids_T[:length])
            for ids_T, length in zip(rows.token_ids_NT, rows.lengths_N, strict=True)
        ]
        known = distinct(np.concatenate([known, *hashes]))
    return known


def shared_share(token_ids_T: NDArray[Any], known: HashesN) -> float:
    """Share of a document's runs of GRAM tokens that are among `known`; 0 for a short document."""
    hashes = gram_hashes(token_ids_T)
    if not len(hashes) or not len(known):
        return 0.0
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return float((known[places] == hashes).mean())


@dataclass(frozen=True)
class Wanted:
    """How much text an evaluation takes."""

    natural_tokens: int
    """Length of natural long documents: longer ones are cut, and shorter than half are not used."""
    natural: int = 48
    short_tokens: int = 1024
    short: int = 256
    haystack_tokens: int = 400_000


@dataclass(frozen=True)
class HeldOut:
    """Texts for evaluation: natural long documents, short ones, and haystacks (token ids)."""

    natural: Rows
    short: Rows
    haystack: list[NDArray[np.uint32]]
    words: list[str]
    """Different words of the texts, sorted."""
    figures: dict[str, Any]


def corpus_texts(
    store: TableStore, shards: Iterable[str], used: set[str], seed: int
) -> Iterator[str]:
    """Texts of documents that no sample contains, shard by shard, by hash in each."""
    for shard in shards:
        frame = store.read(CORPUS_DOCUMENTS, shard, "documents", ["doc_id", "text"])
        rows = [row for row in frame.iter_rows() if row[0] not in used]
        for _, text in sorted(rows, key=lambda row: hash_key(seed, "held out", row[0])):
            yield text


def file_texts(file: str | Path) -> Iterator[str]:
    """The field `text` of each line of a JSON Lines file. Raises TrialError."""
    try:
        with Path(file).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield json.loads(line)["text"]
                except (ValueError, KeyError, TypeError):
                    raise TrialError(
                        f"{file} line {number}: no JSON object with a field `text`; fix the line"
                    ) from None
    except OSError as error:
        raise TrialError(f"{file}: can't be read ({error}); name a JSON Lines file") from None


def open_texts(evaluation: str, store: TableStore, seed: int) -> Iterable[str] | TrialFolder | None:
    """The held-out text that `trial.evaluation` names; None if it names none. Raises TrialError."""
    if not evaluation:
        return None
    if (Path(evaluation) / "trial.json").exists():
        return TrialFolder(evaluation)
    if other := _corpus_shards(evaluation, store):
        return corpus_texts(*other, set(), seed)
    if not Path(evaluation).exists():
        raise TrialError(
            f"held-out text '{evaluation}': neither a file, nor the folder of a trial, nor a "
            f"corpus with documents under {store.uri}"
        )
    return file_texts(evaluation)


def _corpus_shards(name: str, store: TableStore) -> tuple[TableStore, list[str]] | None:
    """The tables of a corpus under the same URI, and its shards; None if it has none."""
    if not re.fullmatch(NAME_PATTERN, name):
        return None
    corpus = TableStore(store.uri, name)
    shards = corpus.shards(CORPUS_DOCUMENTS)
    return (corpus, shards) if shards else None


def texts_version(evaluation: str, store: TableStore) -> Any:
    """Version of the held-out text that `trial.evaluation` names, as a JSON value; None if it is
    missing."""
    if (Path(evaluation) / "trial.json").exists():
        return TrialFolder(evaluation).evaluation_identity()
    if other := _corpus_shards(evaluation, store):
        corpus, shards = other
        return {s: corpus.require(CORPUS_DOCUMENTS, s).data_version for s in shards}
    try:
        with open(evaluation, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:
        return None


def choose_held_out(
    texts: Iterable[str],
    samples: Sequence[Rows],
    tokenizer: Tokenizer,
    wanted: Wanted,
    pad_id: int,
) -> HeldOut:
    """Choose texts in their order: long ones as natural documents, then by turns short ones and
    text for haystacks.

    Every document of the corpus is tokenized until there are enough. Documents that share text
    with a sample are left out and counted. Raises TrialError if nothing is left for natural
    documents or haystacks.
    """
    natural: list[NDArray[Any]] = []
    short: list[NDArray[Any]] = []
    haystack: list[NDArray[Any]] = []
    words: Counter[str] = Counter()
    seen = shared = 0
    largest = 0.0
    known = gram_set(samples)
    remaining = iter(texts)
    while batch := list(islice(remaining, TEXTS_PER_BATCH)):
        ids = [np.array(row, np.uint32) for row in tokenizer.encode(batch)]
        for text, own in zip(batch, ids, strict=True):
            share = shared_share(own, known)
            seen += 1
            if share > MAX_SHARED:
                shared += 1
                continue
            largest = max(largest, share)
            words.update(set(_WORD.findall(text)))
            if len(own) >= wanted.natural_tokens // 2 and len(natural) < wanted.natural:
                natural.append(own[: wanted.natural_tokens])
            elif len(own) >= 64 and len(short) < wanted.short and len(short) <= len(haystack):
                short.append(own[: wanted.short_tokens])
            else:
                haystack.append(own)
        full = sum(map(len, haystack)) >= wanted.haystack_tokens
        if len(natural) >= wanted.natural and len(short) >= wanted.short and full:
            break
    if not natural or not short or not haystack:
        raise TrialError(
            f"of {seen:,} held-out documents {shared:,} share text with samples, and "
            f"{len(natural)} natural long documents, {len(short)} short ones and {len(haystack)} "
            "for haystacks are left; name a corpus or file with more text with --evaluation"
        )
    return HeldOut(
        pad_rows(natural, wanted.natural_tokens, pad_id),
        pad_rows(short, wanted.short_tokens, pad_id),
        haystack,
        sorted(word for word, count in words.items() if count > 1),
        {
            "documents": seen,
            "left_out": shared,
            "gram_tokens": GRAM,
            "max_shared": MAX_SHARED,
            "largest_shared_kept": largest,
            "natural": len(natural),
            "short": len(short),
            "haystack_tokens": sum(map(len, haystack)),
        },
    )
