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

from entropylong_assets.report.document_sample import SampledDocument
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.shards import plan_shards, save_plan
from entropylong_assets.stages.entropy.roots import root_hash
from entropylong_assets.stages.entropy.settings import RootSettings
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.retrieval.stage import CANDIDATE_CONTEXTS_STAGE
from entropylong_assets.stages.stage import Partition, Stage
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

    def run(self, stage: Stage) -> None:
        """Materialize a stage and its blocking checks. Raises TrialError if a check fails."""
        self.on_stage(stage.name)
        corpus = stage.scope == "corpus"
        partition = Partition(
            self.settings.corpus if corpus else self.settings, self.store, self.shards[0]
        )
        done, seconds = 0.0, 0.0
        for shard in self.shards if stage.partitioned else [WHOLE]:
            materialization = materialize(stage, replace(partition, shard=shard))
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


@contextmanager
def open_trial(
    settings: Settings,
    documents: Sequence[SampledDocument],
    root_ids: Sequence[str],
    on_stage: Callable[[str], None] = lambda _: None,
) -> Iterator[Trial]:
    """Run the stages of a dataset up to `candidate_contexts` over these documents.

    root_ids: documents that become roots. They must be those with the lowest `root_hash` of all
    whose length is within the limits of roots. Other documents with such a hash are drawn as well
    and dropped by their length, as in a run. The store is removed at the end.
    """
    with tempfile.TemporaryDirectory(prefix="entropylong-trial-") as folder:
        trial = _make(settings, documents, root_ids, Path(folder), on_stage)
        for stage in (*CANDIDATE_CONTEXTS_STAGE.upstream(), CANDIDATE_CONTEXTS_STAGE):
            trial.run(stage)
        yield trial


def _make(
    settings: Settings,
    documents: Sequence[SampledDocument],
    root_ids: Sequence[str],
    folder: Path,
    on_stage: Callable[[str], None],
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
    return Trial(changed, store, tuple(shard.key for shard in plan.shards), on_stage=on_stage)


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
