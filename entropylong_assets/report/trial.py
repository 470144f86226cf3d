"""A trial: the stages of a dataset over sampled documents, in a temporary store.

It runs the stages of a real run with their checks: documents, chunks, vectors, index, roots and
candidates, and on request dependencies. Nothing is written to the tables of the corpus or the
dataset.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from entropylong_assets.report.document_sample import SampledDocument
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.shards import plan_shards, save_plan
from entropylong_assets.stages.corpus.stage import CORPUS_DOCUMENTS_STAGE
from entropylong_assets.stages.embeddings.index_stages import EMBEDDING_INDEX_STAGE
from entropylong_assets.stages.embeddings.tables import EMBEDDING_INDEX
from entropylong_assets.stages.entropy.roots import root_hash
from entropylong_assets.stages.entropy.settings import RootSettings
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.progress import Observer
from entropylong_assets.stages.retrieval.stage import CANDIDATE_CONTEXTS_STAGE
from entropylong_assets.stages.stage import Partition, Stage
from entropylong_assets.stages.status import status_of
from entropylong_assets.storage.schemas import TableSet
from entropylong_assets.storage.tables import WHOLE, TableStore

_ROWS = 1_000_000_000
"""Maximum number of rows per shard, so that each source of the trial is one shard."""


class TrialError(ValueError):
    """A trial is not possible. The message is one line and says what to do."""


@dataclass(frozen=True)
class Trial:
    """A dataset over sampled documents, in a temporary store."""

    settings: Settings
    """Settings of the dataset, with other sources and roots."""
    store: TableStore
    shards: tuple[str, ...]
    """Keys of the shards, one per source."""
    rates: dict[str, float] = field(default_factory=dict)
    """Units per second of each stage, by its name: chunks, tokens or anchors."""
    on_stage: Callable[[str], None] = lambda _: None
    """Called with the name of each stage before it runs."""
    observer: Observer | None = None
    """Gets the progress of each stage."""

    def run(self, stage: Stage) -> None:
        """Materialize a stage and its blocking checks. Raises TrialError if a check fails."""
        self.on_stage(stage.name)
        corpus = stage.scope == "corpus"
        partition = Partition(
            self.settings.corpus if corpus else self.settings, self.store, self.shards[0]
        )
        done, seconds = 0.0, 0.0
        for shard in self.shards if stage.partitioned else [WHOLE]:
            materialization = materialize(
                stage, replace(partition, shard=shard), observer=self.observer
            )
            done += materialization.rate * materialization.seconds
            seconds += materialization.seconds
            for result in run_checks(
                stage, replace(partition, shard=shard), set(stage.blocking_checks)
            ):
                if not result.passed:
                    raise TrialError(
                        f"{stage.name}: check {result.check.name} failed on a sample of the "
                        f"sources: {result.check.description}"
                    )
        self.rates[stage.name] = done / max(seconds, 1e-9)

    def partitions(self) -> Iterator[Partition]:
        """Yield the partition of each shard of the dataset."""
        for shard in self.shards:
            yield Partition(self.settings, self.store, shard)


EMBEDDED = tuple(
    stage
    for stage in (*EMBEDDING_INDEX_STAGE.upstream(), EMBEDDING_INDEX_STAGE)
    if stage is not CORPUS_DOCUMENTS_STAGE
)
"""Stages that a trial takes over from an embedded corpus."""


class _OverEmbedded(TableStore):
    """A temporary store in which the tables of `EMBEDDED` are those of a corpus."""

    def __init__(self, uri: str, corpus: TableStore, dataset: str) -> None:
        super().__init__(uri, corpus.corpus, dataset)
        self._embedded = corpus

    def home(self, tables: TableSet[Any]) -> str:
        if any(tables.name == stage.name for stage in EMBEDDED):
            return self._embedded.home(tables)
        return super().home(tables)

    @property
    def corpus_uri(self) -> str:
        return self._embedded.corpus_uri


def embedded_store(settings: Settings, shards: Sequence[str]) -> TableStore | None:
    """Return the store of the corpus if all of it is embedded and indexed under these settings.

    None if not, or if its tables are not on a local disk. shards: those of the corpus' plan.
    """
    store = TableStore(settings.data_uri, settings.corpus.name, settings.name)
    if not store.is_local or store.manifest(EMBEDDING_INDEX) is None:
        return None
    stages = (CORPUS_DOCUMENTS_STAGE, *EMBEDDED)
    index = status_of(Partition(settings.corpus, store), stages, shards)[-1]
    return store if index.states[WHOLE].state == "up_to_date" else None


@contextmanager
def open_trial(
    settings: Settings,
    documents: Sequence[SampledDocument],
    root_ids: Sequence[str],
    on_stage: Callable[[str], None] = lambda _: None,
    observer: Observer | None = None,
    embedded: TableStore | None = None,
) -> Iterator[Trial]:
    """Run the stages of a dataset up to `candidate_contexts` over these documents.

    root_ids: documents that become roots. They must be those with the lowest `root_hash` of all
    whose length is within the limits of roots. Other documents with such a hash are drawn as well
    and dropped by their length, as in a run. The store is removed at the end. embedded: a store
    whose chunks are searched instead of those of the documents (`embedded_store`).
    """
    with tempfile.TemporaryDirectory(prefix="entropylong-trial-") as folder:
        trial = _make(settings, documents, root_ids, Path(folder))
        if embedded is not None:
            over = _OverEmbedded(folder, embedded, settings.name)
            trial = replace(trial, store=over)
        trial = replace(trial, on_stage=on_stage, observer=observer)
        for stage in (*CANDIDATE_CONTEXTS_STAGE.upstream(), CANDIDATE_CONTEXTS_STAGE):
            if embedded is None or stage not in EMBEDDED:
                trial.run(stage)
        yield trial


def _make(
    settings: Settings,
    documents: Sequence[SampledDocument],
    root_ids: Sequence[str],
    folder: Path,
) -> Trial:
    by_source: dict[str, list[SampledDocument]] = {}
    for document in documents:
        by_source.setdefault(document.source, []).append(document)
    licenses = {source.name: source.license for source in settings.corpus.sources}
    sources = []
    for name, of_source in by_source.items():
        file = folder / f"{name}.jsonl"
        with file.open("w", encoding="utf-8") as opened:
            opened.writelines(json.dumps({"text": d.text}) + "\n" for d in of_source)
        sources.append(
            SourceSettings(name=name, kind="jsonl", uri=str(file), license=licenses[name])
        )
    corpus = settings.corpus.model_copy(
        update={"data_uri": str(folder), "sources": tuple(sources), "shard_rows": _ROWS}
    )
    changed = settings.model_copy(
        update={
            "data_uri": str(folder),
            "corpus": corpus,
            "roots": _roots_of(settings, by_source, set(root_ids)),
        }
    )
    store = TableStore(str(folder), corpus.name, settings.name)
    plan = plan_shards(corpus)
    save_plan(store, plan)
    return Trial(changed, store, tuple(shard.key for shard in plan.shards))


def _roots_of(
    settings: Settings, by_source: Mapping[str, Sequence[SampledDocument]], root_ids: set[str]
) -> RootSettings:
    """Settings under which the draw selects these roots, source by source."""
    roots: RootSettings = settings.roots
    shares = {
        name: max(
            (
                (root_hash(d.doc_id, settings.seed) + 1) / 2**64
                for d in documents
                if d.doc_id in root_ids
            ),
            default=0.0,
        )
        for name, documents in by_source.items()
    }
    # Use the next float, because the division may have rounded down.
    shares = {name: min(1.0, share * (1 + 2**-50)) for name, share in shares.items()}
    return roots.model_copy(update={"number": None, "fraction": 0.0, "fraction_by_source": shares})
