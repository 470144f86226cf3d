"""Planted truth: a generated corpus of invented facts, whose dependencies are known.

Each fact is stated in one short document and needed in another, whose other sentences are plain
prose. Decoys look alike: statements of the same kind about other names, and documents about the
same place that don't state the fact. A pair is true where the anchor lies in the fact's value and
the chunk is of the stating document.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from entropylong_assets.entropy.model import Tokenizer
from entropylong_assets.storage.tables import TableStore
from entropylong_assets.verification.false_acceptance import acceptance_rate

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

_PROSE = (
    "The committee met on the first Monday of the month to plan the journey.",
    "Several members had never left their own valley, and they asked many questions.",
    "The treasurer reported that the fund was sufficient for the whole group.",
    "Nobody objected to the plan, and the meeting was closed before supper.",
    "It had rained for three days, and the paths were covered with wet leaves.",
    "A letter was read aloud, and the answer to it was put off until later.",
    "The older people preferred to walk slowly and to rest at every bench.",
    "They agreed to bring their own bread, some cheese and a change of clothes.",
    "Someone had left a lamp burning in the hall, and it was put out.",
    "In the evening the windows were opened, because the room had become warm.",
)


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
    """`count` facts with names that no other has."""
    rng = random.Random(seed)  # noqa: S311
    used: set[str] = set()

    def name() -> str:
        while True:
            made = rng.choice(_ONSETS) + rng.choice(_MIDDLES) + rng.choice(_ENDS)
            if made not in used:
                used.add(made)
                return made.capitalize()

    facts = []
    for number in range(count):
        stating, needing, decoy = _KINDS[number % len(_KINDS)]
        place, value, other = name(), name(), name()
        prose = rng.sample(_PROSE, 6)
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


def write_corpus(facts: Sequence[Fact], file: Path) -> None:
    """JSON Lines, in an order that says nothing."""
    texts = [t for fact in facts for t in (fact.needing, fact.stating, *fact.decoys)]
    random.Random(1).shuffle(texts)  # noqa: S311
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(json.dumps({"text": t}) for t in texts) + "\n", encoding="utf-8")


def _is_in_value(tokenizer: Tokenizer, token_ids: Sequence[int], anchor: int, fact: Fact) -> bool:
    start, end = fact.span
    before = len(tokenizer.decode(token_ids[:anchor]))
    after = len(tokenizer.decode(token_ids[: anchor + 1]))
    return before < end and after > start


def measure(
    store: TableStore, shards: Sequence[str], tokenizer: Tokenizer, facts: Sequence[Fact]
) -> list[dict[str, Any]]:
    """Rows of measure, rule and rate: recall of every stage, precision, and decoys accepted."""

    def read(asset: str, table: str, columns: list[str]) -> pl.DataFrame:
        return pl.concat(store.read(asset, shard, table, columns) for shard in shards)

    ids = dict(read("corpus_documents", "documents", ["text", "doc_id"]).iter_rows())
    tokens = dict(read("entropy_scores", "roots", ["root_id", "token_ids"]).iter_rows())
    found = dict(read("entropy_scores", "roots", ["root_id", "anchors"]).iter_rows())
    columns = ["root_id", "anchor", "chunk_id", "entropy_context", "accepted_plain"]
    pairs = read("verified_dependencies", "pairs", [*columns, "accepted_calibrated"])
    pairs = pairs.with_columns(doc_id=pl.col("chunk_id").str.replace(r"-[^-]*$", ""))
    rows: list[dict[str, Any]] = []

    def row(measure: str, rule: str, hits: Sequence[bool], clusters: Sequence[str]) -> None:
        schema = {"root_id": pl.String, "hit": pl.Boolean}
        trials = pl.DataFrame({"root_id": list(clusters), "hit": list(hits)}, schema)
        rate = acceptance_rate(trials, "hit")
        rows.append(
            {"measure": measure, "rule": rule, "passed": rate.passed, "total": rate.total}
            | {"rate": rate.value if rate.total else None, "low": rate.low, "high": rate.high}
        )

    by_need = {ids[fact.needing]: fact for fact in facts if ids[fact.needing] in tokens}
    needs = sorted(by_need)
    inside = {
        root: {a for a in found[root] if _is_in_value(tokenizer, tokens[root], a, by_need[root])}
        for root in needs
    }
    true_pairs = {
        (root, anchor, ids[by_need[root].stating]) for root in needs for anchor in inside[root]
    }
    keys = [(r, a, d) for r, a, d in pairs.select("root_id", "anchor", "doc_id").iter_rows()]
    row("facts whose value is an anchor", "", [bool(inside[r]) for r in needs], needs)
    retrieved = {key[0] for key in keys if key in true_pairs}
    row("facts whose statement was retrieved for it", "", [r in retrieved for r in needs], needs)
    decoys = {ids[d] for fact in facts for d in fact.decoys if d in ids}
    for rule in ("plain", "calibrated"):
        verdicts = pairs[f"accepted_{rule}"].to_list()
        accepted = [key for key, yes in zip(keys, verdicts, strict=True) if yes]
        mine = [key for key in accepted if key[0] in by_need]
        hit = {key[0] for key in mine if key in true_pairs}
        row("recall: facts with an accepted true pair", rule, [r in hit for r in needs], needs)
        row(
            "precision: accepted pairs that are true",
            rule,
            [key in true_pairs for key in mine],
            [key[0] for key in mine],
        )
        row(
            "accepted pairs whose chunk is the stating document",
            rule,
            [key[2] == ids[by_need[key[0]].stating] for key in mine],
            [key[0] for key in mine],
        )
        tried = [
            (key, yes)
            for key, yes in zip(keys, verdicts, strict=True)
            if key[0] in by_need and key[2] in decoys
        ]
        row("decoys accepted", rule, [yes for _, yes in tried], [key[0] for key, _ in tried])
    return rows
