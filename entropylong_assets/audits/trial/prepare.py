"""Writing a trial's folder from a dataset's stored tables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entropylong_assets.audits.trial.arms import (
    DEFAULT_ARMS,
    Arm,
    facts_of_tokenizer,
    pack_arm,
)
from entropylong_assets.audits.trial.folder import Rows, TrialError, TrialFacts, TrialFolder
from entropylong_assets.audits.trial.held_out import (
    MAX_SHARED,
    Wanted,
    choose_held_out,
    corpus_texts,
    gram_set,
    shared_share,
)
from entropylong_assets.audits.trial.tasks import TASKS, TaskMaker
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.tables import TableStore

Log = Callable[[str], None]

MIN_TASK_TOKENS = 2048
"""Of shorter items, the question and the needles are a large part."""


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What a trial's folder holds."""

    tokens: int = 15_000_000
    """Tokens per run: at most as many are packed per arm."""
    sample_tokens: int = 16_384
    arms: Mapping[str, Arm] = field(default_factory=lambda: DEFAULT_ARMS)
    seeds: Sequence[int] = (0, 1)
    task_shares: Sequence[int] = (8, 4, 2, 1)
    """Lengths of the synthetic tasks: the length of a sample divided by these, if that is at least
    MIN_TASK_TOKENS."""
    items: int = 64
    """Items per task and length."""
    natural: int = 48
    """Natural long documents."""


def prepare(
    settings: Settings,
    store: TableStore,
    folder: str | Path,
    wished: PrepareSettings,
    *,
    texts: Iterable[str] | TrialFolder | None = None,
    log: Log = lambda _: None,
) -> TrialFacts:
    """Write samples of every arm, the evaluation and a plan; returns the facts.

    settings: those that the dataset's tables were made with. texts: for evaluation; a folder: the
    items and documents of that trial; None: documents of the dataset's corpus that no sample
    contains. Raises TrialError if there is nothing to pack,
    or too little held-out text.
    """
    from entropylong_assets.stages.entropy.model import load_tokenizer

    shards = store.shards(VERIFIED_DEPENDENCIES)
    if not shards:
        raise TrialError(
            f"{store.dataset_uri}: nothing is verified; materialize {VERIFIED_DEPENDENCIES.name}"
        )
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
        figures[name] = own.figures
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
        made_from={"dataset": settings.name, "corpus": settings.corpus.name, "shards": len(shards)},
    )
    (out.path / "plan.json").write_text(
        json.dumps(first_plan(made, wished, str(folder)), indent=1), encoding="utf-8"
    )
    out.write_facts(made)
    return made


def _write_items(out: TrialFolder, maker: TaskMaker, wished: PrepareSettings) -> list[str]:
    """Write the items of every task and length; returns the names of their files."""
    names = []
    for task in TASKS:
        for share in wished.task_shares:
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


def first_plan(facts: TrialFacts, wished: PrepareSettings, folder: str) -> dict[str, Any]:
    """A plan of every arm with every seed, seed by seed, after the model as it starts."""
    start = {"arm": next(iter(facts.arms)), "tokens": 0}
    runs = [
        {"arm": arm, "seed": seed, "tokens": wished.tokens}
        for seed in wished.seeds
        for arm in facts.arms
    ]
    return {"data": folder, "compile": True, "runs": [start, *runs]}
