"""Roots and contexts of an export of text (format `jsonl`), in the tokens of another tokenizer."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from entropylong_assets.stages.retrieval.registry import make_leak_check
from entropylong_assets.stages.samples.groups import Context, Dependency, Group, unverified
from entropylong_assets.stages.samples.ordering import hash_key
from entropylong_assets.stages.training_data.manifest import ExportError

if TYPE_CHECKING:
    from entropylong_assets.stages.entropy.model import Tokenizer
    from entropylong_assets.stages.retrieval.settings import RetrievalSettings

NO_TOKEN = "anchor_has_no_token"  # noqa: S105
SAME_TOKEN = "same_token_as_another_anchor"  # noqa: S105

Line = Mapping[str, Any]
"""An object of the format `jsonl`."""


@dataclass
class TextGroups:
    """Groups of a few samples in another tokenizer's tokens."""

    groups: list[Group] = field(default_factory=list)
    anchors: dict[str, list[int]] = field(default_factory=dict)
    """Token positions of a root's anchors in the root, ascending, by root_id."""
    texts: dict[str, str] = field(default_factory=dict)
    """Text of each root, by root_id."""
    fillers: list[tuple[Context, str]] = field(default_factory=list)
    """Fillers with their texts."""
    dependencies: int = 0
    """Dependencies read."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Dependencies that no group has, by reason."""

    def add(self, line: Line, tokenizer: Tokenizer, *, keep_negatives: bool) -> None:
        """Add the roots and contexts of one sample.

        keep_negatives: choose hard negatives like verified contexts, instead of filling with them.
        Raises ExportError if a root was cut, or the tokenizer can't tell which characters its
        tokens stand for.
        """
        segments: Sequence[Line] = line["segments"]
        roots = [i for i, s in enumerate(segments) if s["role"] == "root"]
        if len({segments[i]["root_id"] for i in roots}) < len(roots):
            raise ExportError(
                f"sample {line['sample_id']}: a root is in pieces, between which its contexts "
                "stand (recipe nextlong); export again under another recipe"
            )
        encoded = tokenizer.encode_with_spans([segments[i]["text"] for i in roots])
        if encoded is None:
            raise ExportError(
                "this tokenizer can't tell which characters its tokens stand for, so that anchors "
                "can't be found; name a model with a fast tokenizer (tokenizer.json)"
            )
        places = {
            i: _Places(segments[i]["text"], spans)
            for i, (_, spans) in zip(roots, encoded, strict=True)
        }
        dependencies = self._dependencies(line["dependencies"], places)
        contexts = _contexts(segments, tokenizer, dependencies)
        for i, (ids, _) in zip(roots, encoded, strict=True):
            root_id = segments[i]["root_id"]
            own = [c for c in contexts if c.root_id == root_id and not c.filler]
            is_chosen = [c.role != "hard_negative" or keep_negatives for c in own]
            self.groups.append(
                Group(
                    root_id=root_id,
                    token_ids=np.asarray(ids, np.uint32),
                    chosen=tuple(c for c, chosen in zip(own, is_chosen, strict=True) if chosen),
                    negatives=tuple(
                        c for c, chosen in zip(own, is_chosen, strict=True) if not chosen
                    ),
                )
            )
            self.texts[root_id] = segments[i]["text"]
            anchors = [a for a in line["anchors"] if a["segment"] == i]
            tokens = {places[i].token(anchor["start"], anchor["end"]) for anchor in anchors}
            self.anchors[root_id] = sorted(token for token in tokens if token is not None)
        filler_texts = [s["text"] for s in segments if s["role"] == "filler"]
        fillers = [c for c in contexts if c.filler]
        self.fillers += zip(fillers, filler_texts, strict=True)

    def _dependencies(
        self, rows: Sequence[Line], places: Mapping[int, _Places]
    ) -> dict[int, list[Dependency]]:
        """Dependencies by the number of their context, at the tokens of their anchors.

        If two anchors of a context are the same token now, the one with the larger gain is kept.
        """
        by_token: dict[tuple[int, int], Dependency] = {}
        self.dependencies += len(rows)
        for row in sorted(rows, key=lambda row: (-row["gain"], row["rank"])):
            token = places[row["root"]].token(row["start"], row["end"])
            if token is None or (row["context"], token) in by_token:
                self.dropped[NO_TOKEN if token is None else SAME_TOKEN] += 1
                continue
            names = ("rank", "gain", "calibrated_gain", "entropy", "entropy_context")
            measured = {name: row[name] for name in names}
            by_token[row["context"], token] = Dependency(anchor=token, **measured)
        by_context: dict[int, list[Dependency]] = {}
        for (context, _), dependency in sorted(by_token.items(), key=lambda item: item[0]):
            by_context.setdefault(context, []).append(dependency)
        return by_context


class _Places:
    """Finds the tokens of characters of one text."""

    def __init__(self, text: str, spans: Sequence[tuple[int, int]]) -> None:
        self._text, self._spans = text, spans
        self._ends = [end for _, end in spans]

    def token(self, start: int, end: int) -> int | None:
        """The token that holds the first character in this span that is not a space.

        One tokenizer counts the space before a word to it, another does not. None: no token has it.
        """
        text = self._text[start:end]
        place = start + (len(text) - len(text.lstrip()) if text.strip() else 0)
        token = bisect_right(self._ends, place)
        return token if token < len(self._spans) and self._spans[token][0] <= place else None


def _contexts(
    segments: Sequence[Line],
    tokenizer: Tokenizer,
    dependencies: Mapping[int, Sequence[Dependency]],
) -> list[Context]:
    """The contexts and fillers among the segments, in their order.

    A verified context whose dependencies all have no token any more is unverified.
    """
    numbers = [i for i, segment in enumerate(segments) if segment["role"] != "root"]
    encoded = tokenizer.encode([segments[i]["text"] for i in numbers])
    contexts = []
    for i, ids in zip(numbers, encoded, strict=True):
        segment, own = segments[i], tuple(dependencies.get(i, ()))
        is_filler = segment["role"] == "filler"
        context = unverified(
            root_id="" if is_filler else segment["root_id"],
            chunk_id=segment["chunk_id"],
            doc_id=segment["doc_id"],
            source=segment["source"],
            token_ids=[*ids, *tokenizer.separator_ids],
        )
        contexts.append(
            replace(
                context,
                dependencies=own,
                priority=sum(d.gain for d in own),
                first_anchor=min((d.anchor for d in own), default=0),
                first_rank=min((d.rank for d in own), default=0),
                unverified=not own and segment["role"] in ("unverified", "verified"),
                filler=is_filler,
            )
        )
    return contexts


class TextFillers:
    """The fillers of a few samples, to fill others with. Implements `Fillers`.

    Each is used once, in an order by hash.
    """

    def __init__(self, read: TextGroups, retrieval: RetrievalSettings, seed: int) -> None:
        self._texts, self._retrieval = read.texts, retrieval
        self._left = sorted(read.fillers, key=lambda item: hash_key(seed, item[0].chunk_id))

    def __len__(self) -> int:
        """Fillers that were not used."""
        return len(self._left)

    def fillers(self, groups: Sequence[Group]) -> Iterator[Context]:
        own = {context.doc_id for group in groups for context in group.chosen}
        own |= {group.root_id for group in groups}
        texts = [self._texts[group.root_id] for group in groups]
        checks = [make_leak_check(self._retrieval, text) for text in texts]
        limit = self._retrieval.max_containment
        taken: set[str] = set()
        at = 0
        while at < len(self._left):
            context, text = self._left[at]
            is_related = context.doc_id in own or context.chunk_id in taken
            if is_related or any(check.containment(text) >= limit for check in checks):
                at += 1
                continue
            del self._left[at]
            root_id = groups[len(taken) % len(groups)].root_id
            taken.add(context.chunk_id)
            yield replace(context, root_id=root_id)
