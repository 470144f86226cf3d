"""Planted facts: a generated corpus of invented facts, whose dependencies are known.

Each fact is stated in one short document and needed in another, whose other sentences are plain
prose. Decoys look alike: statements of the same kind about other names, and documents about the
same place that don't state the fact. A pair is true if the anchor lies in the fact's value and the
chunk is of the stating document. At other anchors nothing is known to be true or false, since the
facts share their wording: pairs there are counted apart.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.verification.false_acceptance import acceptance_rate
from entropylong_assets.stages.verification.gain import accepted_by
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.object_storage import open_uri
from entropylong_assets.storage.tables import TableStore

_ONSETS, _MIDDLES, _ENDS = (
    syllables.split()
    for syllables in (
        "br dr fl gr kl m n ost pr qu sk st th tr v z",
        "a e i o u ae ia oma ira una",
        "dale quel vith mond rix sund lotte benn korr wyn",
    )
)

_KINDS = (
    (
        "The province of {place} lies between two rivers. Its capital is the town of {value}. "
        "{value} was founded by weavers, and the {value} market is held every spring. The mayor "
        "of {value} is elected for five years.",
        "The province of {place} is best reached from the east, and the capital of {place} is "
        "the town of {value}, where rooms had been reserved for everyone.",
        "The province of {place} is known for its orchards and slate roofs. Visitors to {place} "
        "come in autumn, when the roads are dry and the harvest is brought in.",
    ),
    (
        "The island of {place} has one harbour. The ferry that serves {place} is called the "
        "{value}. The {value} was built of oak, and the captain of the {value} lives on board.",
        "Whoever wishes to see the island of {place} must take the ferry that serves {place}, "
        "which is called the {value}, and it leaves only when the tide allows.",
        "The island of {place} is flat and green. Sheep graze on {place} through the winter, and "
        "the houses stand close together against the wind.",
    ),
    (
        "At the school of {place} the first teacher was a woman named {value}. {value} wrote the "
        "school's songs. A portrait of {value} hangs in the hall at {place}, and pupils of "
        "{place} learn the poems of {value} by heart.",
        "The speaker told how the first teacher at the school of {place} was a woman named "
        "{value}, and how little had changed in the building since those years.",
        "The school of {place} has a large garden. Children at {place} plant beans in May and "
        "measure how far they have grown each week.",
    ),
)

_PROSE_FILE = Path(__file__).with_name("planted_prose.txt")
_SENTENCES = 6
"""Sentences of plain prose around each fact. No two documents share one: a repeated sentence is a
dependency too, and would not be counted as planted."""


@dataclass(frozen=True)
class Fact:
    """One planted dependency: texts of the needing and the stating document, and the value."""

    needing: str
    stating: str
    decoys: tuple[str, ...]
    value: str

    @property
    def span(self) -> tuple[int, int]:
        """Characters of the value's first mention in the needing document."""
        start = self.needing.index(self.value)
        return start, start + len(self.value)


def plant(count: int, seed: int) -> list[Fact]:
    """Make `count` facts; no two share names or prose.

    Raises ValueError if there is not enough prose.
    """
    rng = random.Random(seed)  # noqa: S311
    sentences = _PROSE_FILE.read_text("utf-8").splitlines()
    if count * _SENTENCES > len(sentences):
        most = len(sentences) // _SENTENCES
        raise ValueError(f"{count} facts are too many; {_PROSE_FILE.name} has prose for {most}")
    rng.shuffle(sentences)
    used: set[str] = set()

    def name() -> str:
        while True:
            drawn = rng.choice(_ONSETS) + rng.choice(_MIDDLES) + rng.choice(_ENDS)
            if drawn not in used:
                used.add(drawn)
                return drawn.capitalize()

    facts = []
    for number in range(count):
        stating, needing, decoy = _KINDS[number % len(_KINDS)]
        place, value, other = name(), name(), name()
        prose = [sentences.pop() for _ in range(_SENTENCES)]
        sentence = needing.format(place=place, value=value)
        facts.append(
            Fact(
                needing=" ".join([*prose[:4], sentence, *prose[4:]]),
                stating=stating.format(place=place, value=value),
                decoys=(
                    decoy.format(place=place),
                    stating.format(place=other, value=name()),
                ),
                value=value,
            )
        )
    return facts


def write_corpus(facts: Sequence[Fact], uri: str) -> None:
    """Write the documents as JSON Lines, shuffled.

    A file with this content is left as it is: writing it again would make its shards stale.
    """
    texts = [t for fact in facts for t in (fact.needing, fact.stating, *fact.decoys)]
    random.Random(1).shuffle(texts)  # noqa: S311
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    fs, path = open_uri(uri)
    if not fs.exists(path) or fs.cat_file(path) != content:
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        fs.pipe_file(path, content)


def _is_in_value(tokenizer: Tokenizer, token_ids: Sequence[int], anchor: int, fact: Fact) -> bool:
    start, end = fact.span
    before = len(tokenizer.decode(token_ids[:anchor]))
    after = len(tokenizer.decode(token_ids[: anchor + 1]))
    return before < end and after > start


def values_of(
    store: TableStore, shards: Sequence[str], tokenizer: Tokenizer, facts: Sequence[Fact]
) -> pl.DataFrame:
    """Return every token of every fact's value, for facts whose needing document is a root.

    Columns: root_id, anchor (its position), entropy, mean, std, and stating: doc_id of the document
    that states the fact.
    """
    ids = _document_ids(store, shards)
    roots = store.read_all(ENTROPY_SCORES, shards, "roots")
    by_id = {row["root_id"]: row for row in roots.iter_rows(named=True)}
    rows = []
    for fact in facts:
        root = by_id.get(ids[fact.needing])
        if root is None:  # too short or too long to be a root
            continue
        for position, entropy in enumerate(root["entropies"]):
            if entropy is not None and _is_in_value(tokenizer, root["token_ids"], position, fact):
                rows.append(
                    {"root_id": root["root_id"], "anchor": position, "entropy": entropy}
                    | {"mean": root["mean"], "std": root["std"], "stating": ids[fact.stating]}
                )
    schema = {"root_id": pl.String, "anchor": pl.Int32, "entropy": pl.Float64, "mean": pl.Float64}
    return pl.DataFrame(rows, schema=schema | {"std": pl.Float64, "stating": pl.String})


def _document_ids(store: TableStore, shards: Sequence[str]) -> dict[str, str]:
    """Text to doc_id."""
    documents = store.read_all(CORPUS_DOCUMENTS, shards, "documents", ["text", "doc_id"])
    return dict(documents.select("text", "doc_id").iter_rows())


def shortfall(values: pl.DataFrame, alpha: float) -> float | None:
    """Median over facts of τ minus the highest entropy in the fact's value (nats).

    values: from `values_of`.
    """
    short = (pl.col("mean") + alpha * pl.col("std") - pl.col("entropy")).alias("short")
    return values.group_by("root_id").agg(short.min())["short"].median()  # type: ignore[return-value]


def measure(
    store: TableStore,
    shards: Sequence[str],
    facts: Sequence[Fact],
    values: pl.DataFrame,
    alpha: float,
    rules: Iterable[str],
) -> list[dict[str, Any]]:
    """Measure the recall of every stage, precision, accepted decoys, and pairs accepted elsewhere.

    Returns rows of measure, alpha, rule, passed, total, rate, low and high. values: from
    `values_of`. alpha: at least the one that the tables were made with; only anchors above
    τ = μ + α·σ are counted. rules: names of evaluated rules.
    """
    needs = values["root_id"].unique().sort().to_list()
    above = pl.col("entropy") > pl.col("mean") + alpha * pl.col("std")
    anchors = values.filter(above)
    ids = _document_ids(store, shards)
    decoys = [ids[text] for fact in facts for text in fact.decoys if text in ids]
    roots = store.read_all(ENTROPY_SCORES, shards, "roots").select("root_id", "mean", "std")
    pairs = (
        store.read_all(VERIFIED_DEPENDENCIES, shards, "pairs")
        .filter(pl.col("root_id").is_in(needs))
        .with_columns(doc_id=pl.col("chunk_id").str.replace(r"-[^-]*$", ""))
        .join(roots, on="root_id")
        .filter(above)
        .join(anchors.select("root_id", "anchor", "stating"), on=["root_id", "anchor"], how="left")
    )
    at_value = pairs.filter(pl.col("stating").is_not_null())
    at_value = at_value.with_columns(
        true=pl.col("doc_id") == pl.col("stating"), decoy=pl.col("doc_id").is_in(decoys)
    )
    elsewhere = pairs.filter(pl.col("stating").is_null())

    def row(measure: str, rule: str, trials: pl.DataFrame, hit: pl.Expr) -> dict[str, Any]:
        rate = acceptance_rate(trials, hit)
        return (
            {"measure": measure, "alpha": alpha, "rule": rule}
            | {"passed": rate.passed, "total": rate.total}
            | {"rate": rate.value if rate.total else None, "low": rate.low, "high": rate.high}
            | {"is_rough": rate.is_rough}
        )

    def share_of_facts(measure: str, rule: str, hits: pl.DataFrame) -> dict[str, Any]:
        trials = pl.DataFrame({"root_id": needs}, schema={"root_id": pl.String})
        hit = pl.col("root_id").is_in(hits["root_id"].unique().to_list())
        return row(measure, rule, trials.with_columns(hit=hit), pl.col("hit"))

    true = pl.col("true")
    rows = [
        share_of_facts("facts whose value contains an anchor", "", anchors),
        share_of_facts("facts whose statement was retrieved for it", "", at_value.filter(true)),
    ]
    for rule in rules:
        accepts = accepted_by(rule)
        accepted = at_value.filter(accepts)
        tried = at_value.filter("decoy")
        rows += [
            share_of_facts("recall: facts with an accepted true pair", rule, accepted.filter(true)),
            row("precision: accepted pairs at a value that are true", rule, accepted, true),
            row("decoys accepted at a value", rule, tried, accepts),
            row("pairs accepted at other anchors", rule, elsewhere, accepts),
        ]
    return rows
