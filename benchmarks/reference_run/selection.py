"""Chooses documents for training, within limits, and held-out documents, in a fixed order."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from benchmarks.reference_run.overlap import RUN, longest_runs
from benchmarks.reference_run.text import Document

FAMILY_CHARS = 55_000_000
"""Maximum characters of a family in training; documentation folders have no maximum."""

GROUP_CHARS = 5_000_000
"""Maximum characters of a group (service, collection or package) in training."""

MAX_FAMILY_SHARE = 0.35
MAX_GROUP_SHARE = 0.03

SHORT_CHARS = (800, 6_000)
"""Minimum and maximum length of a short held-out document (characters)."""

SHORT_PER_FAMILY = 150


def order_of(document: Document) -> bytes:
    """Return a key that sorts documents as if shuffled, the same everywhere."""
    return digest(f"{document.package}\n{document.path}\n{document.title}\n{document.text}")


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def without_duplicates(documents: Iterable[Document]) -> list[Document]:
    """Keep the first of the documents that differ in white space only."""
    first = {digest(re.sub(r"\s+", " ", d.text).strip()): d for d in reversed(list(documents))}
    return sorted(first.values(), key=order_of)


def within_limits(documents: Sequence[Document]) -> list[Document]:
    """Drop documents beyond GROUP_CHARS of their group or FAMILY_CHARS of their family."""
    kept = _limit(documents, GROUP_CHARS, lambda d: f"{d.family}/{d.group}")
    docs = [d for d in kept if d.family == "docs"]
    others = _limit([d for d in kept if d.family != "docs"], FAMILY_CHARS, lambda d: d.family)
    return sorted([*docs, *others], key=order_of)


def _limit(
    documents: Sequence[Document], limit: int, key: Callable[[Document], str]
) -> list[Document]:
    size: Counter[str] = Counter()
    kept = []
    for document in documents:
        if size[key(document)] + len(document.text) <= limit:
            size[key(document)] += len(document.text)
            kept.append(document)
    return kept


def choose_short(documents: Iterable[Document]) -> list[Document]:
    """Return up to SHORT_PER_FAMILY documents per family of a length within SHORT_CHARS."""
    count: Counter[str] = Counter()
    chosen = []
    for document in without_duplicates(documents):
        if SHORT_CHARS[0] <= len(document.text) <= SHORT_CHARS[1]:
            count[document.family] += 1
            if count[document.family] <= SHORT_PER_FAMILY:
                chosen.append(document)
    return chosen


def without_overlap(
    heldout: Sequence[Document], train: Iterable[Document]
) -> tuple[list[Document], list[Document]]:
    """Return the held-out documents that repeat no RUN words of training, and the others."""
    runs = longest_runs([d.text for d in heldout], (d.text for d in train))
    pairs = list(zip(heldout, runs, strict=True))
    return [d for d, run in pairs if run < RUN], [d for d, run in pairs if run >= RUN]


def shares(documents: Iterable[Document], key: Callable[[Document], str]) -> dict[str, float]:
    """Return the share of all characters per key, largest first."""
    size: Counter[str] = Counter()
    for document in documents:
        size[key(document)] += len(document.text)
    return {name: chars / size.total() for name, chars in size.most_common()}
