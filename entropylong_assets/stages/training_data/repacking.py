"""Packing an export of text (format `jsonl`) again, shard by shard, with counts that reconcile."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from entropylong_assets.stages.entropy.tokenizer_facts import TokenizerFacts
from entropylong_assets.stages.retrieval.settings import RetrievalSettings
from entropylong_assets.stages.samples.groups import Group
from entropylong_assets.stages.samples.packing import Dropped, Framing, Segment, lay_out, pack
from entropylong_assets.stages.samples.settings import SampleSettings
from entropylong_assets.stages.training_data.jsonl import JSONL
from entropylong_assets.stages.training_data.manifest import ExportError
from entropylong_assets.stages.training_data.samples import domain_of, export_order
from entropylong_assets.stages.training_data.split import TRAIN, VALIDATION
from entropylong_assets.stages.training_data.text_groups import TextFillers, TextGroups
from entropylong_assets.storage.object_storage import open_uri

if TYPE_CHECKING:
    from entropylong_assets.stages.entropy.model import Tokenizer

ROOT_TOO_LONG = "root_too_long"

_LEAK_CHECK = ("leak_check", "leak_ngram_words", "max_containment")


@dataclass
class Report:
    """What was read, packed and dropped. Every root, context and dependency is in it once."""

    read: Counter[str] = field(default_factory=Counter)
    """samples, roots, contexts, dependencies, hard_negatives, fillers, anchors."""
    packed: Counter[str] = field(default_factory=Counter)
    roots_dropped: Counter[str] = field(default_factory=Counter)
    contexts_dropped: Counter[str] = field(default_factory=Counter)
    """Contexts by reason, those of dropped roots by the reason of the root."""
    dependencies_dropped: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    """Tokens of all samples by role."""
    tokens_by_source: Counter[str] = field(default_factory=Counter)
    samples: dict[str, Counter[str]] = field(
        default_factory=lambda: {TRAIN: Counter(), VALIDATION: Counter()}
    )
    """Samples per split and source."""

    def drop(self, dropped: Dropped, groups: Mapping[str, Group]) -> None:
        self.dependencies_dropped[dropped.reason] += dropped.n_dependencies
        if dropped.chunk_id is not None:
            self.contexts_dropped[dropped.reason] += 1
            return
        self.roots_dropped[dropped.reason] += 1
        self.contexts_dropped[dropped.reason] += len(groups[dropped.root_id].chosen)

    def counts(self) -> dict[str, Any]:
        """The counts as in the manifest, without zeros."""

        def plain(counter: Counter[str]) -> dict[str, int]:
            return {name: n for name, n in sorted(counter.items()) if n}

        names = ("read", "packed", "roots_dropped", "contexts_dropped", "dependencies_dropped")
        return {name: plain(getattr(self, name)) for name in names}

    def content(self, licenses: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest's content about the packed samples. licenses: of the sources."""
        total = self.tokens.total()
        return {
            "splits": {split: counts.total() for split, counts in self.samples.items()},
            "sources": {split: dict(counts) for split, counts in self.samples.items()},
            "repacked": self.counts(),
            "figures": {
                "samples": self.packed["samples"],
                "tokens": total,
                "tokens_by_role": dict(sorted(self.tokens.items())),
                "share_by_role": {role: n / total for role, n in sorted(self.tokens.items())},
                "tokens_by_source": dict(sorted(self.tokens_by_source.items())),
                "licenses": licenses,
                "dependencies": self.packed["dependencies"],
            },
        }


@dataclass(frozen=True)
class LaidOut:
    """A sample as segments."""

    sample_id: str
    shard: str
    split: str
    segments: Sequence[Segment]
    anchors: Mapping[str, Sequence[int]]
    """Token positions of a root's anchors in the root, ascending, by root_id."""


class Repacking:
    """Reads an export of text and packs its samples."""

    def __init__(
        self, uri: str, manifest: Mapping[str, Any], tokenizer: Tokenizer, facts: TokenizerFacts
    ) -> None:
        self._fs, self._folder = open_uri(uri)
        self._manifest, self._tokenizer = manifest, tokenizer
        self._framing = Framing.of(facts)
        recorded = manifest["settings"]
        chosen = recorded["samples"]
        names = ("order", "layout", "fill")
        known = {name: chosen[name] for name in names if name in chosen}
        self._samples = SampleSettings(tokens=facts.sample_tokens, **known)
        leak = recorded.get("retrieval", {})
        self._retrieval = RetrievalSettings(**{k: leak[k] for k in _LEAK_CHECK if k in leak})
        self._seed = recorded["seed"]

    def laid_out(self, report: Report) -> Iterator[LaidOut]:
        """All samples, ordered by source, shard and id; `report` counts them."""
        streams = {split: self._by_shard(split) for split in (TRAIN, VALIDATION)}
        heads = {split: next(stream, None) for split, stream in streams.items()}
        while waiting := {split: head for split, head in heads.items() if head is not None}:
            shard = export_order([name for name, _ in waiting.values()])[0]
            number = 0
            for split, (name, lines) in waiting.items():
                if name != shard:
                    continue
                for sample in self._pack(shard, split, lines, number, report):
                    number += 1
                    yield sample
                heads[split] = next(streams[split], None)

    def _by_shard(self, split: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """The lines of a split by shard."""
        for shard, lines in groupby(self._lines(split), key=lambda line: str(line["shard"])):
            yield shard, list(lines)

    def _lines(self, split: str) -> Iterator[dict[str, Any]]:
        for file in self._manifest["files"]:
            path = file["path"]
            if not path.startswith(f"{JSONL}/{split}-"):
                continue
            with self._fs.open(f"{self._folder.rstrip('/')}/{path}", "rb") as stream:
                for number, line in enumerate(stream, start=1):
                    try:
                        yield json.loads(line)
                    except ValueError as error:
                        raise ExportError(
                            f"{path} line {number}: damaged ({error}); copy or export it again"
                        ) from None

    def _pack(
        self,
        shard: str,
        split: str,
        lines: Sequence[dict[str, Any]],
        first: int,
        report: Report,
    ) -> Iterator[LaidOut]:
        """Samples of the lines of one shard and split, numbered from `first`."""
        read = TextGroups()
        keep_negatives = self._samples.fill != "hard_negatives"
        for line in lines:
            read.add(line, self._tokenizer, keep_negatives=keep_negatives)
        groups = {group.root_id: group for group in read.groups}
        longest = self._samples.tokens - self._framing.bos_tokens - len(self._framing.separator_ids)
        fitting = []
        for group in read.groups:
            if len(group.token_ids) <= longest:
                fitting.append(group)
                continue
            n = sum(len(context.dependencies) for context in group.chosen)
            too_long = Dropped(
                root_id=group.root_id, chunk_id=None, reason=ROOT_TOO_LONG, n_dependencies=n
            )
            report.drop(too_long, groups)
        samples, dropped = pack(fitting, self._framing, self._samples, self._seed)
        for each in dropped:
            report.drop(each, groups)
        fillers = TextFillers(read, self._retrieval, self._seed)
        _count_read(report, lines, read)
        for number, members in enumerate(samples, start=first):
            segments = lay_out(members, self._framing, self._samples, self._seed, fillers)
            anchors = {group.root_id: read.anchors[group.root_id] for group in members}
            report.samples[split][domain_of(shard)] += 1
            _count_packed(report, members, segments, anchors, shard)
            yield LaidOut(f"{shard}-{number:05d}", shard, split, segments, anchors)


def _count_read(report: Report, lines: Sequence[Mapping[str, Any]], read: TextGroups) -> None:
    report.read.update(
        samples=len(lines),
        roots=len(read.groups),
        contexts=sum(len(group.chosen) for group in read.groups),
        hard_negatives=sum(len(group.negatives) for group in read.groups),
        fillers=len(read.fillers),
        dependencies=read.dependencies,
        anchors=sum(len(line["anchors"]) for line in lines),
    )
    report.dependencies_dropped += read.dropped


def _count_packed(
    report: Report,
    members: Sequence[Group],
    segments: Sequence[Segment],
    anchors: Mapping[str, Sequence[int]],
    shard: str,
) -> None:
    contexts = [context for group in members for context in group.chosen]
    fill = Counter(s.role for s in segments if s.context is not None)
    chosen = Counter(context.role for context in contexts)
    report.packed.update(
        samples=1,
        roots=len(members),
        contexts=len(contexts),
        hard_negatives=fill["hard_negative"] - chosen["hard_negative"],
        fillers=fill["filler"],
        dependencies=sum(len(context.dependencies) for context in contexts),
        anchors=sum(map(len, anchors.values())),
    )
    for segment in segments:
        report.tokens[segment.role] += len(segment.token_ids)
        source = segment.context.source if segment.context else domain_of(shard)
        if segment.context or segment.group:
            report.tokens_by_source[source] += len(segment.token_ids)
