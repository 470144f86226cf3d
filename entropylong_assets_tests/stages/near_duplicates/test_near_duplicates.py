"""Near-duplicates against brute force over the true sets of shingles.

The failures guarded against: a pair that brute force finds is missed; unrelated documents are
joined; the result depends on the order or cut of the shards; a large cluster takes quadratic work.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from entropylong_assets.project import make_project, open_store
from entropylong_assets.settings.section import SettingsError
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.near_duplicates.minhash import (
    MAX_MISS,
    PERMUTATIONS,
    choose_bands,
    shingles,
    signatures,
)
from entropylong_assets.stages.near_duplicates.stages import (
    DOCUMENT_SIGNATURES_STAGE,
    NEAR_DUPLICATES_STAGE,
)
from entropylong_assets.stages.near_duplicates.tables import NEAR_DUPLICATES, NearDuplicatesSummary
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.text_units import split_units
from entropylong_assets.storage.manifest import CheckOutcome
from entropylong_assets.storage.tables import WHOLE

LATIN = [f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "pe", "ra") for b in ("rin", "sto", "va", "x")]
HAN = [chr(0x4E00 + 37 * i) for i in range(300)]
HINDI = ["नदी", "पत्थर", "दीपक", "तांबा", "उत्तर", "बाग", "धागा", "काग़ज़", "नमक", "दर्पण", "पुल", "शांत"]


def words_of(alphabet: Sequence[str], count: int, seed: int) -> list[str]:
    return list(np.random.default_rng(seed).choice(alphabet, count))


def edited(words: Sequence[str], share: float, seed: int) -> list[str]:
    """Each word is replaced by a new one with this probability."""
    draw = np.random.default_rng(seed)
    return [f"new{draw.integers(10**9)}" if draw.random() < share else word for word in words]


def doc_id(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def shingle_set(text: str, n: int = 3) -> set[tuple[str, ...]]:
    units = split_units(text)
    return {tuple(units[i : i + n]) for i in range(max(1, len(units) - n + 1))}


def jaccard(a: str, b: str) -> float:
    x, y = shingle_set(a), shingle_set(b)
    return len(x & y) / len(x | y)


def brute_force(texts: Sequence[str], threshold: float) -> dict[str, str]:
    """Representative of every member: components of all pairs at or above the threshold."""
    group = {doc_id(text): doc_id(text) for text in texts}
    for a, b in itertools.combinations(sorted(set(texts)), 2):
        if jaccard(a, b) >= threshold:
            old, new = sorted((group[doc_id(a)], group[doc_id(b)]), reverse=True)
            group = {doc: new if root == old else root for doc, root in group.items()}
    return {doc: root for doc, root in group.items() if doc != root}


class Corpus:
    """Shards with these texts, in a store of their own."""

    def __init__(
        self,
        folder: Path,
        shards: Mapping[str, Sequence[str]],
        sources: Mapping[str, str] = {},
        **settings: Any,
    ) -> None:
        names = sorted({*sources.values(), "web"})
        values = {
            "data_uri": str(folder),
            "corpus": {"sources": [{"name": name, "uri": "none"} for name in names]},
            "near_duplicates": settings,
        }
        self.settings = make_project(values).corpus
        self.store = open_store(self.settings)
        self.shards = list(shards)
        for shard, texts in shards.items():
            rows = [
                {
                    "doc_id": doc_id(text), "text": text, "source": sources.get(shard, "web"),
                    "file": "f", "row": i, "external_id": None, "license": "cc0",
                    "n_chars": len(text),
                }
                for i, text in enumerate(dict.fromkeys(texts))
            ]  # fmt: skip
            with self.store.write(CORPUS_DOCUMENTS, shard, fingerprint="f") as writer:
                writer.append("documents", rows)
                writer.append("dropped", [])
                writer.summary = {
                    "rows_read": len(rows), "documents": len(rows), "chars": 0, "dropped": {},
                }  # fmt: skip
            names = ["unique_documents", "no_empty_text", "rows_reconcile", "few_bad_rows"]
            passed = CheckOutcome(passed=True, blocking=True, faulty_rows=0)
            self.store.record_checks(CORPUS_DOCUMENTS, shard, dict.fromkeys(names, passed))

    def partition(self, shard: str = WHOLE) -> Partition:
        return Partition(self.settings, open_store(self.settings), shard)

    def find(self) -> pl.DataFrame:
        for shard in self.shards:
            materialize(DOCUMENT_SIGNATURES_STAGE, self.partition(shard))
            for result in run_checks(DOCUMENT_SIGNATURES_STAGE, self.partition(shard)):
                assert result.passed, result
        materialize(NEAR_DUPLICATES_STAGE, self.partition())
        for result in run_checks(NEAR_DUPLICATES_STAGE, self.partition()):
            assert result.passed, result
        return self.store.read(NEAR_DUPLICATES, WHOLE, "members")

    @property
    def summary(self) -> NearDuplicatesSummary:
        return self.store.summary(NEAR_DUPLICATES)


def representatives(members: pl.DataFrame) -> dict[str, str]:
    return dict(members.select("doc_id", "representative").iter_rows())


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """120 texts of three scripts: originals, copies with edits, and a chain of edits of edits."""
    result = []
    for seed in range(24):
        alphabet, space = [(LATIN, " "), (HAN, ""), (HINDI, " ")][seed % 3]
        words = words_of(alphabet, 150, seed)
        for number, share in enumerate((0, 0.02, 0.05, 0.3)):
            result.append(space.join(edited(words, share, 100 * seed + number)))
        result.append(space.join([*words[75:], *words[:75]]))  # reordered
    return result


def test_clusters_are_those_of_brute_force(tmp_path: Path, texts: list[str]) -> None:
    corpus = Corpus(tmp_path, {"a": texts[::2], "b": texts[1::2]})
    members = corpus.find()
    expected = brute_force(texts, 0.7)
    assert representatives(members) == expected
    assert 40 < len(expected) < 100
    text = {doc_id(t): t for t in texts}
    for row in members.iter_rows(named=True):
        similarity = jaccard(text[row["doc_id"]], text[row["representative"]])
        assert row["similarity"] == pytest.approx(similarity)
    scripts = {text[doc][0].isascii() or text[doc][0] > "\u4e00" for doc in expected}
    assert scripts == {True, False}, "Hindi and the others"


def test_order_and_cut_of_shards_have_no_effect(tmp_path: Path, texts: list[str]) -> None:
    cuts = [
        {"a": texts},
        {"a": texts[60:], "b": texts[:60]},
        {f"s{i}": texts[i::7][::-1] for i in range(7)},
    ]
    members = [Corpus(tmp_path / str(i), cut).find() for i, cut in enumerate(cuts)]
    assert len(members[0]) > 40
    assert members[0].equals(members[1])
    assert members[0].equals(members[2])


def test_a_new_shard_may_bring_the_representative_but_frees_no_member(
    tmp_path: Path, texts: list[str]
) -> None:
    """Otherwise a new shard could make documents roots that were none before."""
    before = representatives(Corpus(tmp_path / "1", {"a": texts[:80]}).find())
    copies = [" ".join(edited(t.split(), 0.02, i)) for i, t in enumerate(texts[:80:3])]
    after = representatives(Corpus(tmp_path / "2", {"a": texts[:80], "b": copies}).find())
    assert before.keys() <= after.keys()
    new = {doc_id(copy) for copy in copies}
    assert new & set(after.values()), "a new document represents an old cluster"


def test_a_copy_in_several_shards_is_one_document(tmp_path: Path) -> None:
    text = " ".join(words_of(LATIN, 100, 1))
    corpus = Corpus(tmp_path, {"a": [text], "b": [text], "c": [text + " end"]})
    members = corpus.find()
    assert len(members) == 1
    assert corpus.summary.documents == 2
    assert members["cluster_size"].to_list() == [2]


def test_thresholds_are_those_of_the_sources(tmp_path: Path) -> None:
    words = words_of(LATIN, 200, 5)
    a, b = (" ".join(edited(words, share, 1)) for share in (0, 0.03))
    assert 0.8 < jaccard(a, b) < 0.95
    sources = {"a": "web", "b": "books"}
    for by_source, n_members in (({"books": 0.98}, 0), ({"books": 0.5}, 1)):
        folder = tmp_path / str(n_members)
        corpus = Corpus(folder, {"a": [a], "b": [b]}, sources, threshold_by_source=by_source)
        assert len(corpus.find()) == n_members
        rows = corpus.store.read(NEAR_DUPLICATES, WHOLE, "sources").to_dicts()
        assert {row["source"]: row["documents"] for row in rows} == {"books": 1, "web": 1}
        assert sum(row["members"] for row in rows) == n_members


def test_without_a_threshold_nothing_is_compared(tmp_path: Path, texts: list[str]) -> None:
    corpus = Corpus(tmp_path, {"a": texts}, threshold=None)
    assert corpus.find().is_empty()
    assert corpus.summary.bands == 0


def test_documents_without_a_word_are_not_compared(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, {"a": ["-" * 30, "+" * 30, "..."]})
    assert corpus.find().is_empty()
    assert corpus.summary.documents == 0


def test_a_threshold_for_an_unknown_source_is_refused() -> None:
    values = {
        "corpus": {"sources": [{"name": "web", "uri": "x"}]},
        "near_duplicates": {"threshold_by_source": {"wbe": 0.8}},
    }
    with pytest.raises(SettingsError, match="no source 'wbe'; there are web"):
        make_project(values)


def test_a_large_cluster_takes_work_in_proportion_to_its_size(
    tmp_path: Path,
) -> None:
    """All pairs of 300 copies would be 44,850."""
    words = words_of(LATIN, 200, 9)
    copies = [" ".join([*words, f"page{i}"]) for i in range(300)]
    corpus = Corpus(tmp_path, {"a": copies})
    members = corpus.find()
    assert len(members) == 299
    assert members["representative"].unique().to_list() == [min(map(doc_id, copies))]
    assert corpus.summary.candidate_pairs < 25 * 2 * 300


def test_a_signature_estimates_the_similarity() -> None:
    """Unbiased, with the standard deviation of 128 independent permutations."""
    errors, variance = [], []
    for seed in range(400):
        words = words_of(LATIN, 120, seed)
        texts = [" ".join(words), " ".join(edited(words, (seed % 5) / 25, seed))]
        a, b = signatures([shingles(text, 3) for text in texts])
        similarity = jaccard(*texts)
        errors.append(float((a == b).mean()) - similarity)
        variance.append(similarity * (1 - similarity) / PERMUTATIONS)
    assert abs(np.mean(errors)) < 0.006
    assert np.std(errors) == pytest.approx(np.sqrt(np.mean(variance)), rel=0.15)


def test_signatures_are_what_they_were() -> None:
    """Signatures are stored, so another version of a library must not change them."""
    signature = signatures([shingles("The quick brown fox jumps over the lazy dog", 3)])
    digest = hashlib.sha256(signature.astype("<u4").tobytes()).hexdigest()
    assert digest[:16] == "aba478a636ab59f5"


@pytest.mark.parametrize("threshold", [0.4, 0.5, 0.7, 0.8, 0.95, 1.0])
def test_bands_suit_the_threshold(threshold: float) -> None:
    bands, rows = choose_bands(threshold)
    assert bands * rows <= PERMUTATIONS
    assert (1 - threshold**rows) ** bands <= MAX_MISS
