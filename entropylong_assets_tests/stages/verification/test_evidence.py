"""Evidence spans: the search, and what it finds with a real scorer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from entropylong_assets.project import open_store
from entropylong_assets.stages.entropy.model import Tokenizer, load_scoring_model
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.verification.evidence import (
    MIN_KEPT,
    gain_of,
    locate_tokens,
    rank_sentences,
    search,
)
from entropylong_assets.stages.verification.evidence_kinds import KINDS
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage import duck
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.stages.verification.one_shard import verify, with_verification

KEY = ["root_id", "anchor", "chunk_id"]


Window = tuple[int, int]


def run_search(
    lengths: list[int], order: list[int], holding: dict[int, float], needed: int = 1
) -> tuple[Window, list[Window], list[Window]]:
    """Search where a window keeps the sum of what its sentences hold, and all of the gain is left
    unless `needed` of the sentences that hold something are taken out.

    Returns the span, the windows scored alone and those taken out.
    """
    searching = search(lengths, order)
    tried: dict[bool, list[Window]] = {True: [], False: []}
    probes = next(searching)
    while True:
        shares: list[float] = []
        for window, is_alone in probes:
            tried[is_alone].append(window)
            held = [holding[i] for i in range(*window) if i in holding]
            shares.append(sum(held) if is_alone else min(1.0, len(held) / needed))
        try:
            probes = searching.send(shares)
        except StopIteration as done:
            return done.value, tried[True], tried[False]


def test_a_sentence_that_keeps_enough_is_the_span() -> None:
    assert run_search([30, 20, 10], [1, 0, 2], {1: 0.6, 2: 0.9}) == ((1, 2), [(1, 2)], [(1, 2)])


def test_of_the_next_sentences_the_shortest_is_the_span() -> None:
    holding = {0: 0.59, 1: 0.9, 2: 0.6, 3: 0.9}
    span, alone, _ = run_search([30, 20, 10, 5], [0, 1, 2, 3], holding)
    assert span == (2, 3)
    assert alone == [(0, 1), (1, 2), (2, 3)], "the fourth is not among the most promising"


def test_a_sentence_that_keeps_too_little_is_widened_by_its_neighbours() -> None:
    span, alone, _ = run_search([9] * 9, [4, 0, 8], {4: 0.3, 5: 0.3})
    assert span == (4, 6)
    assert alone == [(4, 5), (0, 1), (8, 9), (3, 5), (4, 6)]


@pytest.mark.parametrize("n", [2, 3, 10, 64])
def test_a_gain_that_needs_all_sentences_ends_with_the_whole_context(n: int) -> None:
    span, alone, removed = run_search([9] * n, [n - 1, 0], {0: 0.5, n - 1: 0.5})
    assert span == (0, n)
    assert len(alone) <= 2 + 2 * (np.ceil(np.log2(n)) + 1)
    assert removed == []


def test_a_span_is_widened_until_enough_is_removed() -> None:
    """Sentence 6 tells the same as sentence 4."""
    span, alone, removed = run_search([9] * 9, [4], {4: 0.9, 6: 0.9}, needed=2)
    assert span == (4, 8)
    assert alone == [(4, 5), (4, 8)], "the wider window must keep enough as well"
    assert removed == [(4, 5), (3, 5), (4, 6), (2, 6), (4, 8)]


def test_a_span_stays_short_where_the_same_is_told_far_away() -> None:
    span, alone, removed = run_search([9] * 10, [0], {0: 0.9, 9: 0.9}, needed=2)
    assert (span, alone) == ((0, 1), [(0, 1)])
    assert max(end - start for start, end in removed) <= 5, "half of the context"


def test_sentences_with_the_word_come_first_then_those_like_the_root() -> None:
    sentences = ["Gold is dear.", "Silver was mined near Potosí.", "No silver here.", "Potosí!"]
    assert rank_sentences(sentences, "potosí", "the mines near silver") == [1, 3, 2, 0]
    assert rank_sentences(sentences, None, "gold is here") == [0, 2, 1, 3]


SCORES = {"surprisal": 6.0, "surprisal_control": 5.0, "surprisal_context": 1.0}
SCORES |= {"entropy": 4.0, "entropy_control": 5.0, "entropy_context": 2.0}


@pytest.mark.parametrize(
    ("change", "measure", "left"),
    [
        ({}, "surprisal", (5 - 3) / 4),  # from the lower reference, here the controls
        ({"surprisal_control": None}, "surprisal", (6 - 3) / 5),
        ({"surprisal_context": 4.0}, "entropy", (4 - 3) / 2),  # drops by no more than a fifth
        # Rule `plain` accepts what does not exceed the controls.
        ({"surprisal_context": 5.5, "entropy_control": 1.0}, "entropy", (4 - 3) / 2),
        ({"surprisal_context": 5.5, "entropy_context": 4.5}, "entropy", None),
    ],
)
def test_the_gain_is_measured_by_surprisal_where_it_dropped(
    change: dict[str, float | None], measure: str, left: float | None
) -> None:
    gain = gain_of(SCORES | change)
    assert gain.measure == measure
    assert gain.share(3.0) == (None if left is None else pytest.approx(left))


def test_tokens_of_a_span_decode_to_it(world: World) -> None:
    tokenizer = load_scoring_model(world.settings.scoring).tokenizer
    text = "River stone 今天 lamp.\n\nCopper  north engine. Überall Garten."
    (token_ids,) = tokenizer.encode([text])
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            first, last = locate_tokens(tokenizer, text, start, end)
            assert 0 <= first < last <= len(token_ids)
            assert text[start:end].strip() in tokenizer.decode(token_ids[first:last])
            # Half a character of several tokens decodes to a replacement character.
            shorter = tokenizer.decode(token_ids[: last - 1]).rstrip("\ufffd")
            assert last == first + 1 or len(shorter) < end, "no token more than needed"


def surprisal_and_entropy(world: World, context: str, root: list[int], anchor: int) -> list[float]:
    """Computed with transformers alone, in one pass over the whole sequence."""
    model = load_scoring_model(world.settings.scoring)
    tokenizer: Tokenizer = model.tokenizer
    before = list(tokenizer.bos_ids)
    if context:
        before += tokenizer.encode([context + "\n\n"])[0]
    with torch.no_grad():
        logits = model.hf_model(torch.tensor([before + root])).logits[0].double()
    log_p = torch.log_softmax(logits[len(before) + anchor - 1], -1)
    return [-float(log_p[root[anchor]]), -float((log_p.exp() * log_p).sum())]


def test_shares_are_those_of_another_computation(world: World, tmp_path: Path) -> None:
    """Each span is scored alone and taken away, for pairs of both shards."""
    checked, into = 0, TableStore(str(tmp_path))
    settings = with_verification(world.settings, rule="plain", epsilon=0.02)
    for shard in world.shards:
        pairs = verify(settings, shard, into).pairs.filter("accepted")
        evidence = into.read(VERIFIED_DEPENDENCIES, shard, "evidence")
        assert evidence.select(KEY).sort(KEY).equals(pairs.select(KEY).sort(KEY))
        assert set(evidence["kind"]) <= set(KINDS)
        chunks = world.store.read(CANDIDATE_CONTEXTS, shard, "chunks")
        texts = dict(chunks.select("chunk_id", "text").iter_rows())
        roots = world.store.read(ENTROPY_SCORES, shard, "roots")
        tokens = dict(roots.select("root_id", "token_ids").iter_rows())
        rows = pairs.join(evidence, on=KEY).filter(pl.col("kept").is_not_null()).sort(KEY)
        for row in rows[::3].iter_rows(named=True):
            text, root = texts[row["chunk_id"]], tokens[row["root_id"]]
            assert row["kept"] >= MIN_KEPT - 1e-6
            number = 0 if row["measure"] == "surprisal" else 1
            alone, without = text[row["start"] : row["end"]], text[: row["start"]]
            without = (without + text[row["end"] :].lstrip()).strip()
            given, left, rest, bare = (
                surprisal_and_entropy(world, context, root, row["anchor"])[number]
                for context in (text, alone, without, "")
            )
            control = row[f"{row['measure']}_control"]
            reference = min(bare, control) if min(bare, control) > given else bare
            gain = reference - given
            tolerance = 1e-4 / gain
            is_whole = text == alone
            kept = 1.0 if is_whole else (reference - left) / gain
            assert row["kept"] == pytest.approx(kept, abs=tolerance)
            assert 1 - row["removed"] == pytest.approx((reference - rest) / gain, abs=tolerance)
            checked += not is_whole
    assert checked > 20


def test_spans_do_not_depend_on_what_shares_a_batch(world: World, tmp_path: Path) -> None:
    """The world was verified with eight roots per batch, this shard with two."""
    shard, into = world.shards[0], TableStore(str(tmp_path))
    done = verify(world.settings, shard, into)
    one, other = (
        store.read(VERIFIED_DEPENDENCIES, shard, "evidence").sort(KEY)
        for store in (into, world.store)
    )
    shares = ["kept", "removed"]
    assert one.drop(shares).equals(other.drop(shares))
    for name in shares:
        assert np.allclose(one[name], other[name], atol=1e-4, equal_nan=True)
    summary = world.store.summary(VERIFIED_DEPENDENCIES, shard)
    assert done.verified.evidence_tokens == summary.evidence_tokens > 0
    counts = done.verified.counts.summary()
    assert counts["dependencies_by_kind"] == summary.dependencies_by_kind
    assert sum(summary.dependencies_by_kind.values()) == summary.accepted
    assert summary.evidence_kept == pytest.approx(one["kept"].median(), abs=1e-4)


def test_without_evidence_nothing_more_is_scored(world: World, tmp_path: Path) -> None:
    shard, into = world.shards[0], TableStore(str(tmp_path))
    done = verify(with_verification(world.settings, evidence=False), shard, into)
    assert done.verified.evidence_tokens == 0
    assert into.read(VERIFIED_DEPENDENCIES, shard, "evidence").is_empty()
    summary = world.store.summary(VERIFIED_DEPENDENCIES, shard)
    assert done.verified.forward_tokens == summary.forward_tokens


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        ("outside the chunk", {"end": 10**6}),
        ("outside the chunk", {"start": -1}),
        ("outside the tokens", {"token_end": 10**6}),
        ("unknown kind or measure", {"kind": "semantic"}),
        ("undefined share", {"removed": None}),
        ("keeps too little", {"kept": 0.5}),
        ("chunk unknown", {"chunk_id": "nowhere-00000"}),
    ],
)
def test_the_check_finds_a_fault(world: World, fault: str, change: dict[str, object]) -> None:
    shard = world.shards[0]
    evidence = world.store.read(VERIFIED_DEPENDENCIES, shard, "evidence")
    with_shares = evidence["kept"].is_not_null().arg_true()[0]
    wrong = evidence.with_columns(
        pl.when(pl.int_range(pl.len()) == with_shares)
        .then(pl.lit(value, evidence.schema[name]))
        .otherwise(name)
        .alias(name)
        for name, value in change.items()
    )
    found = faults(world, wrong)
    assert fault in found
    assert found <= {fault, "pairs and spans differ"}


def test_the_check_finds_a_missing_and_a_second_span(world: World) -> None:
    evidence = world.store.read(VERIFIED_DEPENDENCIES, world.shards[0], "evidence")
    assert faults(world, evidence) == set()
    for wrong in (evidence[1:], pl.concat([evidence, evidence[:1]])):
        assert faults(world, wrong) == {"pairs and spans differ"}
    assert faults(world, evidence, evidence_is_on=False) == {"pairs and spans differ"}
    assert faults(world, evidence.clear(), evidence_is_on=False) == set()


def faults(world: World, evidence: pl.DataFrame, *, evidence_is_on: bool = True) -> set[str]:
    from entropylong_assets.stages.verification.stage import VERIFIED_DEPENDENCIES_STAGE as STAGE

    store, shard = open_store(world.settings), world.shards[0]
    assert STAGE.check_folder is not None
    sql = (STAGE.check_folder / "evidence_in_contexts.sql").read_text()
    views = {
        "pairs": store.read(VERIFIED_DEPENDENCIES, shard, "pairs"),
        "contexts": store.read(VERIFIED_DEPENDENCIES, shard, "contexts"),
        "evidence": evidence,
    }
    parameters = {"evidence": evidence_is_on, "min_kept": MIN_KEPT, "kinds": list(KINDS)}
    with duck.connect(store, views, only=sql) as session:
        return {row[3] for row in session.sql(sql, params=parameters).fetchall()}
