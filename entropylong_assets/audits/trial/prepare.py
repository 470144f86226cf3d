"""Writing a trial's folder from a dataset's stored tables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from entropylong_assets.audits.trial.arms import facts_of_tokenizer, pack_arm
from entropylong_assets.audits.trial.folder import Rows, TrialError, TrialFacts, TrialFolder
from entropylong_assets.audits.trial.held_out import (
    MAX_SHARED,
    Wanted,
    choose_held_out,
    corpus_texts,
    gram_set,
    open_texts,
    shared_share,
)
from entropylong_assets.audits.trial.settings import TrialSettings
from entropylong_assets.audits.trial.tasks import TASKS, TaskMaker
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.tables import TableStore

Log = Callable[[str], None]

MIN_TASK_TOKENS = 2048
"""Of shorter items, the question and the needles are a large part."""


TASK_SHARES = (8, 4, 2, 1)
"""Lengths of the synthetic tasks: the length of a sample divided by these, if that is at least
MIN_TASK_TOKENS."""


def prepare(
    settings: Settings,
    store: TableStore,
    folder: str | Path,
    shards: Sequence[str] | None = None,
    *,
    log: Log = lambda _: None,
) -> TrialFacts:
    """Write samples of every arm, the evaluation and a plan; returns the facts.

    settings: those that the dataset's tables were made with; its section `trial` says what the
    trial compares. shards: None for all that are verified. Raises TrialError if there is nothing to
    pack, or too little held-out text.
    """
    from entropylong_assets.stages.entropy.model import load_tokenizer

    wished: TrialSettings = settings.trial
    shards = store.shards(VERIFIED_DEPENDENCIES) if shards is None else list(shards)
    if not shards:
        raise TrialError(
            f"{store.dataset_uri}: no verified shard can be used; materialize "
            f"{VERIFIED_DEPENDENCIES.name}, or see why with `entropylong status`"
        )
    if not wished.arms:
        raise TrialError("trial.arms names no arm, so that there is nothing to compare")
    texts = open_texts(wished.evaluation, store, settings.seed)
    out = TrialFolder(folder)
    shutil.rmtree(out.path / "samples", ignore_errors=True)
    shutil.rmtree(out.path / "items", ignore_errors=True)
    (out.path / "trial.json").unlink(missing_ok=True)
    figures: dict[str, dict[str, Any]] = {}
    packed: list[Rows] = []
    used: set[str] = set()
    for name, arm in wished.arms.items():
        try:
            own = pack_arm(
                arm,
                Partition(settings, store),
                shards,
                wished.sample_tokens,
                wished.tokens // wished.sample_tokens,
            )
        except TrialError as error:
            raise TrialError(f"arm {name}: {error}") from None
        out.write_samples(name, own.rows)
        figures[name] = own.figures | {"content": own.rows.identity()}
        packed.append(own.rows)
        used |= own.documents
        log(f"{name}: {own.figures['samples']:,} samples from {own.figures['roots']:,} roots")
    first = Partition(settings, store, shards[0])
    facts = facts_of_tokenizer(first, wished.sample_tokens)
    if isinstance(texts, TrialFolder):
        out.copy_evaluation(texts)
        names, decontamination = texts.facts.items, _shared_now(texts, packed)
    else:
        if texts is None:
            texts = corpus_texts(store, store.shards(CORPUS_DOCUMENTS), used, settings.seed)
        tokenizer = load_tokenizer(settings.scoring)
        wanted = Wanted(wished.sample_tokens, natural=wished.natural)
        held_out = choose_held_out(texts, packed, tokenizer, wanted, facts.pad_id)
        out.write_documents("natural", held_out.natural)
        out.write_documents("short", held_out.short)
        maker = TaskMaker(tokenizer, held_out.haystack, held_out.words, settings.seed, facts.pad_id)
        names, decontamination = _write_items(out, maker, wished), held_out.figures
    log(f"held out: {decontamination}")
    made = TrialFacts(
        model=settings.scoring.model,
        vocab_size=facts.vocab_size,
        pad_id=facts.pad_id,
        sample_tokens=wished.sample_tokens,
        arms=figures,
        items=names,
        decontamination=decontamination,
        made_from={
            "dataset": settings.name,
            "corpus": settings.corpus.name,
            "shards": len(shards),
            "evaluation": out.evaluation_identity(),
        },
    )
    (out.path / "plan.json").write_text(
        json.dumps(first_plan(made, wished, str(folder)), indent=1), encoding="utf-8"
    )
    out.write_facts(made)
    return made


def _write_items(out: TrialFolder, maker: TaskMaker, wished: TrialSettings) -> list[str]:
    """Write the items of every task and length; returns the names of their files."""
    names = []
    for task in TASKS:
        for share in TASK_SHARES:
            tokens = wished.sample_tokens // share
            if tokens < MIN_TASK_TOKENS and share > 1:
                continue
            names.append(f"{task}-{tokens}")
            out.write_items(names[-1], maker.items(task, tokens, wished.items))
    return names


def _shared_now(texts: TrialFolder, packed: Sequence[Rows]) -> dict[str, Any]:
    """Figures of another trial's held-out documents against these samples. Raises TrialError if
    one of them shares more text with a sample than is allowed."""
    known, shares = gram_set(packed), [0.0]
    for name in ("natural", "short"):
        rows = texts.documents(name)
        assert rows is not None, "a complete folder has both"
        for ids_T, length in zip(rows.token_ids_NT, rows.lengths_N, strict=True):
            shares.append(shared_share(ids_T[:length], known))
    if count := sum(share > MAX_SHARED for share in shares):
        raise TrialError(
            f"{texts.path}: {count} of its held-out documents share text with these samples; name "
            "other text with --evaluation"
        )
    figures = texts.facts.decontamination
    return figures | {"largest_shared_kept": max(max(shares), figures["largest_shared_kept"])}


def first_plan(facts: TrialFacts, wished: TrialSettings, folder: str) -> dict[str, Any]:
    """A plan of every arm with every seed, seed by seed, after the model as it starts."""
    start = {"arm": next(iter(facts.arms)), "tokens": 0}
    runs = [
        {"arm": arm, "seed": seed, "tokens": wished.tokens}
        for seed in wished.seeds
        for arm in facts.arms
    ]
    names = ("learning_rate", "batch_tokens", "max_repeats")
    return {
        "data": folder,
        "compile": True,
        "short_window": wished.short_window,
        "settings": {name: getattr(wished, name) for name in names},
        "runs": [start, *runs],
    }
