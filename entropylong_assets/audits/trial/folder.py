"""The files that a trial trains and evaluates on.

    trial.json                  TrialFacts
    samples/<arm>.npy           token ids, (samples, sample_tokens), uint16 or uint32
    samples/<arm>.lengths.npy   tokens before the padding of each sample, int32
    samples/<arm>.weights.npy   loss weight of each token, float16; only if the arm has weights
    items/<task>-<tokens>.npz   token_ids (items, tokens), start and end of each answer
    natural.npz, short.npz      token_ids (documents, tokens), lengths

An arm is one way to make samples: a recipe, or a recipe with other settings. Padding stands at the
end of a row only. This module needs only numpy.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 1


class TrialError(ValueError):
    """A trial can't be run as requested. The message is one line and says what to do."""


@dataclass(frozen=True)
class Rows:
    """Rows of tokens, each padded at its end.

    token_ids_NT: integers. lengths_N: tokens before the padding, int32. weights_NT: loss weight of
    each token, or None: 1 each.
    """

    token_ids_NT: NDArray[Any]
    lengths_N: NDArray[np.int32]
    weights_NT: NDArray[np.float16] | None = None

    def __len__(self) -> int:
        return len(self.token_ids_NT)

    def identity(self) -> str:
        """Hash of the content."""
        digest = hashlib.sha256()
        for array in (self.token_ids_NT, self.lengths_N, self.weights_NT):
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Items:
    """Items of a task at one length: the answer is token_ids_NT[i, start_N[i]:end_N[i]]."""

    token_ids_NT: NDArray[Any]
    start_N: NDArray[np.int32]
    end_N: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class TrialFacts:
    """What a trial's files are and what they were made from."""

    model: str
    """Scoring model of the dataset: folder, GGUF file or hub id."""
    vocab_size: int
    pad_id: int
    sample_tokens: int
    arms: dict[str, dict[str, Any]]
    """Figures of each arm, by name: `samples`, `learnt_tokens` and more for the page; `content`,
    the hash of its samples, makes the identity of the folder depend on them."""
    items: list[str] = field(default_factory=list)
    """Names of the files of items, `<task>-<tokens>`."""
    decontamination: dict[str, Any] = field(default_factory=dict)
    made_from: dict[str, Any] = field(default_factory=dict)


class TrialFolder:
    """Reads and writes the folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def facts(self) -> TrialFacts:
        """Raises TrialError if the folder is not a trial's, or of another format."""
        file = self.path / "trial.json"
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise TrialError(
                f"{file} does not exist; run `entropylong trial --prepare {self.path}` first"
            ) from None
        found = values.pop("format", None)
        if found != FORMAT:
            raise TrialError(f"{file}: format {found}, expected {FORMAT}; prepare the folder again")
        return TrialFacts(**values)

    @property
    def identity(self) -> str:
        """Hash of the facts: the same in any place, another once the folder is prepared again."""
        return hashlib.sha256((self.path / "trial.json").read_bytes()).hexdigest()[:16]

    def write_facts(self, facts: TrialFacts) -> None:
        """Write last: a folder without the file is not complete."""
        text = json.dumps({"format": FORMAT, **asdict(facts)}, indent=1)
        (self.path / "trial.json").write_text(text, encoding="utf-8")

    def write_samples(self, arm: str, rows: Rows) -> None:
        folder = self.path / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{arm}.npy", compact(rows.token_ids_NT))
        np.save(folder / f"{arm}.lengths.npy", rows.lengths_N)
        if rows.weights_NT is not None:
            np.save(folder / f"{arm}.weights.npy", rows.weights_NT)

    def samples(self, arm: str) -> Rows:
        """Raises TrialError if there is no such arm, or its files contradict each other."""
        folder = self.path / "samples"
        if not (folder / f"{arm}.npy").exists():
            names = sorted(p.name[:-12] for p in folder.glob("*.lengths.npy"))
            raise TrialError(
                f"{folder}: no samples of '{arm}'; there are {', '.join(names) or 'none'}"
            )
        weights = folder / f"{arm}.weights.npy"
        rows = Rows(
            np.load(folder / f"{arm}.npy"),
            np.load(folder / f"{arm}.lengths.npy"),
            np.load(weights) if weights.exists() else None,
        )
        _check(rows, folder / f"{arm}.npy", self.facts.sample_tokens)
        return rows

    def write_items(self, name: str, items: Items) -> None:
        (self.path / "items").mkdir(parents=True, exist_ok=True)
        np.savez(
            self.path / "items" / f"{name}.npz",
            token_ids=compact(items.token_ids_NT),
            start=items.start_N,
            end=items.end_N,
        )

    def items(self) -> Mapping[str, Items]:
        """All items, by the name of their file."""
        found = {}
        for file in sorted((self.path / "items").glob("*.npz")):
            with np.load(file) as arrays:
                found[file.stem] = Items(arrays["token_ids"], arrays["start"], arrays["end"])
        return found

    def evaluation_identity(self) -> str:
        """Hash of all items and documents: results are comparable only if it is equal."""
        digest = hashlib.sha256()
        arrays = [(name, items.token_ids_NT, items.start_N) for name, items in self.items().items()]
        for name in ("natural", "short"):
            if (rows := self.documents(name)) is not None:
                arrays.append((name, rows.token_ids_NT, rows.lengths_N))
        for name, *parts in arrays:
            digest.update(name.encode())
            for part in parts:
                digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()[:16]

    def copy_evaluation(self, other: TrialFolder) -> None:
        """Take the items and documents of another trial, so that results are comparable."""
        shutil.copytree(other.path / "items", self.path / "items", dirs_exist_ok=True)
        for name in ("natural.npz", "short.npz"):
            shutil.copy(other.path / name, self.path / name)

    def write_documents(self, name: str, rows: Rows) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        np.savez(
            self.path / f"{name}.npz", token_ids=compact(rows.token_ids_NT), lengths=rows.lengths_N
        )

    def documents(self, name: str) -> Rows | None:
        """Documents of `natural` or `short`; None without such a file."""
        file = self.path / f"{name}.npz"
        if not file.exists():
            return None
        with np.load(file) as arrays:
            return Rows(arrays["token_ids"], arrays["lengths"])


def compact(token_ids: NDArray[Any]) -> NDArray[Any]:
    """The same ids as uint16 if they fit, else as uint32."""
    return token_ids.astype(np.uint16 if token_ids.max(initial=0) < 1 << 16 else np.uint32)


def pad_rows(rows: list[NDArray[Any]], tokens: int, pad_id: int) -> Rows:
    """Lay rows of at most `tokens` ids into one array, padded at the end."""
    out = np.full((len(rows), tokens), pad_id, np.uint32)
    for row, ids in zip(out, rows, strict=True):
        row[: len(ids)] = ids
    return Rows(out, np.array([len(ids) for ids in rows], np.int32))


def _check(rows: Rows, file: Path, sample_tokens: int) -> None:
    shape = rows.token_ids_NT.shape
    if len(shape) != 2 or shape[1] != sample_tokens or len(rows.lengths_N) != shape[0]:
        raise TrialError(
            f"{file}: shape {shape} with {len(rows.lengths_N)} lengths, but trial.json says "
            f"samples of {sample_tokens} tokens; prepare the folder again"
        )
    if shape[0] and not 2 <= rows.lengths_N.min() <= rows.lengths_N.max() <= sample_tokens:
        raise TrialError(
            f"{file}: a sample has fewer than 2 tokens or more than {sample_tokens}; prepare the "
            "folder again"
        )
