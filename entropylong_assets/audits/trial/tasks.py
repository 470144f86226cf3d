"""Synthetic tasks after RULER (Hsieh et al., arXiv 2404.06654), for models of any size.

Needles in real text, variable tracking, common words and frequent words, written again from the
paper's description. The answer ends the item, so that one forward pass judges it. Different from
RULER: needles stand in held-out text of the corpus, words come from that text, and there is no
generation. Question answering is left out: its texts can't be shipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.audits.trial.folder import Items, TrialError, pad_rows

Draw = np.random.Generator


class TextCodec(Protocol):
    """A tokenizer, such as `stages.entropy.model.Tokenizer`."""

    @property
    def bos_ids(self) -> tuple[int, ...]: ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Parts:
    """The parts of an item: pieces inside the haystack, then the question and the answer."""

    intro: str
    pieces: tuple[str, ...]
    """In their order in the item; each gets its place in the haystack at random."""
    question: str
    answer: str


_TRIES, _FULL = 8, 0.97
"""Tries to find a list of the right length, and the share of the tokens that is enough."""

_LETTERS = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
_NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}


def _number(draw: Draw) -> str:
    return str(draw.integers(1_000_000, 10_000_000))


def _needle(key: str, value: str) -> str:
    return f"\nOne of the special magic numbers for {key} is: {value}.\n"


def _keys(draw: Draw, words: Sequence[str], count: int) -> list[str]:
    """Pairs of words, so that a key stands nowhere in the text."""
    picked = draw.choice(len(words), 2 * count, replace=False)
    return [f"{words[a]}-{words[b]}" for a, b in picked.reshape(count, 2)]


def _needles(draw: Draw, words: Sequence[str], keys: int, values: int) -> Parts:
    """`keys` keys with `values` numbers each, of which the first key's are asked for."""
    names = _keys(draw, words, keys)
    all_values = {name: [_number(draw) for _ in range(values)] for name in names}
    placed = [(name, value) for name in names for value in all_values[name]]
    order = draw.permutation(len(placed))
    placed = [placed[i] for i in order]
    wanted = [value for name, value in placed if name == names[0]]
    what = "special magic number" if values == 1 else "special magic numbers"
    verb = "is" if values == 1 else "are"
    return Parts(
        "Some special magic numbers are hidden within the following text. Make sure to memorize "
        "them. I will quiz you about the numbers afterwards.\n",
        tuple(_needle(name, value) for name, value in placed),
        f"\nWhat {verb} the {what} for {names[0]} mentioned in the provided text? The {what} for "
        f"{names[0]} mentioned in the provided text {verb}",
        " " + ", ".join(wanted),
    )


def single_needle(draw: Draw, words: Sequence[str]) -> Parts:
    return _needles(draw, words, keys=1, values=1)


def multi_key(draw: Draw, words: Sequence[str]) -> Parts:
    return _needles(draw, words, keys=8, values=1)


def multi_value(draw: Draw, words: Sequence[str]) -> Parts:
    return _needles(draw, words, keys=1, values=4)


def variable_tracking(draw: Draw, _: Sequence[str], hops: int = 4) -> Parts:
    """A chain of assignments; all variables of the chain are asked for."""
    names = ["".join(draw.choice(_LETTERS, 5)) for _ in range(hops + 1)]
    value = str(draw.integers(10_000, 100_000))
    lines = [f"\nVAR {names[0]} = {value}.\n"]
    lines += [f"\nVAR {b} = VAR {a}.\n" for a, b in pairwise(names)]
    count = _NUMBERS.get(len(names), str(len(names)))
    return Parts(
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n",
        tuple(lines),
        f"\nQuestion: Find all variables that are assigned the value {value} in the text above. "
        f"Answer: According to the chain(s) of variable assignment in the text above, {count} "
        f"variables are assigned the value {value}, they are:",
        " " + ", ".join(names),
    )


HAYSTACK_TASKS: dict[str, Callable[[Draw, Sequence[str]], Parts]] = {
    "single_needle": single_needle,
    "multi_key": multi_key,
    "multi_value": multi_value,
    "variable_tracking": variable_tracking,
}


def common_words(draw: Draw, words: Sequence[str], entries: int) -> Parts:
    """Ten words that stand often in a list of words that stand three times (more often, up to ten
    times, if there are too few words); in the order in which they first stand."""
    often = min(30, max(6, entries // 30))
    rest, others = max(30, entries - 10 * often), len(words) - 10
    times = min(often // 3, 10, max(3, -(-rest // others))) if often > 9 else 2
    rare = min(rest // times, others)
    picked = [words[i] for i in draw.permutation(len(words))[: 10 + rare]]
    pool = np.array(picked[:10] * often + picked[10:] * times)
    listed = draw.permutation(pool).tolist()
    common = set(picked[:10])
    first = list(dict.fromkeys(word for word in listed if word in common))
    lines = " ".join(f"{number}. {word}" for number, word in enumerate(listed, 1))
    return Parts(
        "Below is a numbered list of words. In these words, some appear more often than others. "
        f"Memorize the ones that appear most often.\n{lines}",
        (),
        "\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words "
        "that appear most often in the list are:",
        " " + ", ".join(first),
    )


def frequent_words(draw: Draw, _: Sequence[str], entries: int) -> Parts:
    """Coded words by Zipf's law with exponent 2; the three most frequent, most frequent first."""
    ranks = np.arange(1, 1 + max(8, entries // 10))
    counts = np.maximum(1, np.floor(entries * ranks**-2.0 / (np.pi**2 / 6))).astype(int)
    low = np.char.lower(_LETTERS)
    coded = ["".join(draw.choice(low, 6)) for _ in ranks]
    stream = np.repeat(coded, counts)[:entries]
    text = " ".join(draw.permutation(stream))
    return Parts(
        "Read the following coded text and track the frequency of each coded word. Find the three "
        f"most frequently appeared coded words. {text}",
        (),
        "\nQuestion: What are the three most frequently appeared words in the above coded text? "
        "Answer: According to the coded text above, the three most frequently appeared words are:",
        " " + ", ".join(coded[:3]),
    )


LIST_TASKS: dict[str, Callable[[Draw, Sequence[str], int], Parts]] = {
    "common_words": common_words,
    "frequent_words": frequent_words,
}

TASKS = (*HAYSTACK_TASKS, *LIST_TASKS)


@dataclass(frozen=True, eq=False)
class TaskMaker:
    """Makes items from held-out text.

    texts: token ids of documents that no sample contains. words: at least 256 different words.
    """

    codec: TextCodec
    texts: Sequence[NDArray[Any]]
    words: Sequence[str]
    seed: int
    pad_id: int

    def items(self, task: str, tokens: int, count: int) -> Items:
        """Items of at most `tokens` tokens. Equal arguments give equal items; raises TrialError if
        there is too little text or too few words, or a task does not fit."""
        self._refuse_too_little(tokens)
        rows, starts = [], []
        for number in range(count):
            draw = np.random.default_rng([self.seed, TASKS.index(task), tokens, number])
            if task in HAYSTACK_TASKS:
                body, answer = self._in_haystack(
                    HAYSTACK_TASKS[task](draw, self.words), tokens, draw
                )
            else:
                body, answer = self._list(LIST_TASKS[task], tokens, draw)
            rows.append(np.array([*body, *answer], np.uint32))
            starts.append(len(body))
        padded = pad_rows(rows, tokens, self.pad_id)
        return Items(padded.token_ids_NT, np.array(starts, np.int32), padded.lengths_N)

    def _refuse_too_little(self, tokens: int) -> None:
        total = sum(map(len, self.texts))
        if total < 2 * tokens or len(self.words) < 256:
            raise TrialError(
                f"the held-out documents have {total:,} tokens and {len(self.words):,} different "
                f"words; items of {tokens:,} tokens need {2 * tokens:,} tokens and 256 words: name "
                "more text with --evaluation"
            )

    def _encode(self, *texts: str) -> list[list[int]]:
        return self.codec.encode(texts)

    def _in_haystack(self, parts: Parts, tokens: int, draw: Draw) -> tuple[list[int], list[int]]:
        intro, question, answer, *pieces = self._encode(
            parts.intro, parts.question, parts.answer, *parts.pieces
        )
        fixed = [*self.codec.bos_ids, *intro, *question, *answer]
        room = tokens - len(fixed) - sum(map(len, pieces))
        if room < 0:
            raise TrialError(f"{tokens} tokens are too few for this task; take longer items")
        hay = self._hay(room, draw)
        # Sorted places keep the pieces' order: a chain of assignments stays one.
        places = np.sort(draw.integers(0, room + 1, len(pieces)))
        body = [*self.codec.bos_ids, *intro]
        last = 0
        for place, piece in zip(places.tolist(), pieces, strict=True):
            body += [*hay[last:place].tolist(), *piece]
            last = place
        return [*body, *hay[last:].tolist(), *question], answer

    def _hay(self, room: int, draw: Draw) -> NDArray[np.uint32]:
        """`room` tokens of documents one after the other, from a random document on."""
        parts: list[NDArray[Any]] = []
        at = int(draw.integers(len(self.texts)))
        missing = room
        while missing > 0:
            parts.append(self.texts[at % len(self.texts)][:missing])
            missing -= len(parts[-1])
            at += 1
        return np.concatenate([np.zeros(0, np.uint32), *parts]).astype(np.uint32)

    def _list(
        self, make: Callable[[Draw, Sequence[str], int], Parts], tokens: int, draw: Draw
    ) -> tuple[list[int], list[int]]:
        """A list that nearly fills the tokens, found by a few tries."""
        seed = int(draw.integers(1 << 60))
        entries, best = max(16, tokens // 5), None
        for _ in range(_TRIES):
            parts = make(np.random.default_rng(seed), self.words, entries)
            intro, question, answer = self._encode(parts.intro, parts.question, parts.answer)
            body = [*self.codec.bos_ids, *intro, *question]
            length = len(body) + len(answer)
            if length <= tokens and (best is None or len(body) > len(best[0])):
                best = (body, answer)
            if _FULL * tokens <= length <= tokens:
                break
            entries = max(16, int(entries * (1 + _FULL) / 2 * tokens / length))
        if best is None:
            raise TrialError(f"{tokens} tokens are too few for a list of words; take longer items")
        return best
