"""Planted facts: a generated corpus of invented facts, whose dependencies are known.

Each fact is stated in one short document and needed in another, whose other sentences are plain
prose. Two decoys resemble the stating document: a statement of the same form about other names, and
a document about the same place without the fact. The forms (planted_forms.json) differ in the kind
of value (a name, number, date, symbol of code, section, word), in how similarly both documents are
worded, and in language.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from entropylong_assets.storage.object_storage import open_uri

_ONSETS, _MIDDLES, _ENDS = (
    syllables.split()
    for syllables in (
        "br dr fl gr kl m n ost pr qu sk st th tr v z",
        "a e i o u ae ia oma ira una",
        "dale quel vith mond rix sund lotte benn korr wyn",
    )
)
_MONTHS = ("January", "March", "April", "June", "September", "October", "November")
_VERBS = ("drop", "purge", "reset", "flush", "clear", "forget")

_FORMS_FILE = Path(__file__).with_name("planted_forms.json")
_PROSE_FILE = Path(__file__).with_name("planted_prose.txt")
_SENTENCES = 6
"""Sentences of plain prose around each fact. No two documents share one, because a repeated
sentence would be a dependency that is not counted as planted."""


@dataclass(frozen=True)
class Fact:
    """One planted dependency: texts of the needing and the stating document, and the value."""

    form: str
    needing: str
    stating: str
    decoys: tuple[str, ...]
    value: str

    @property
    def span(self) -> tuple[int, int]:
        """Characters of the value's first mention in the needing document."""
        start = self.needing.index(self.value)
        return start, start + len(self.value)


class _Values:
    """Draws names and values; none contains another, whatever the case."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._used: list[str] = []
        self.kinds: dict[str, Callable[[], str]] = {
            "name": lambda: self._word().capitalize(),
            "word": self._word,
            "number": lambda: str(rng.randint(20_000, 64_999)),
            "date": self._date,
            "symbol": lambda: f"{rng.choice(_VERBS)}_{self._word()}",
            "section": lambda: f"{rng.randint(10, 99)}{rng.choice('abcdefghkmp')}",
        }

    def _word(self) -> str:
        return self._rng.choice(_ONSETS) + self._rng.choice(_MIDDLES) + self._rng.choice(_ENDS)

    def _date(self) -> str:
        day, year = self._rng.randint(10, 28), self._rng.randint(1700, 1930)
        return f"{day} {self._rng.choice(_MONTHS)} {year}"

    def draw(self, kind: str) -> str:
        while True:
            drawn = self.kinds[kind]()
            key = drawn.casefold()
            if not any(key in used or used in key for used in self._used):
                self._used.append(key)
                return drawn


def plant(count: int, seed: int) -> list[Fact]:
    """Make `count` facts, of every form in turn; no two share names, values or prose.

    Raises ValueError if there is not enough prose.
    """
    rng = random.Random(seed)  # noqa: S311
    sentences = _PROSE_FILE.read_text("utf-8").splitlines()
    if count * _SENTENCES > len(sentences):
        most = len(sentences) // _SENTENCES
        raise ValueError(f"{count} facts are too many; {_PROSE_FILE.name} has prose for {most}")
    rng.shuffle(sentences)
    forms = json.loads(_FORMS_FILE.read_text("utf-8"))
    values = _Values(rng)
    facts = []
    for number in range(count):
        form = forms[number % len(forms)]
        place, other = values.draw("name"), values.draw("name")
        value, other_value = values.draw(form["value"]), values.draw(form["value"])
        prose = [sentences.pop() for _ in range(_SENTENCES)]
        sentence = form["needing"].format(place=place, value=value)
        facts.append(
            Fact(
                form=form["name"],
                needing=" ".join([*prose[:4], sentence, *prose[4:]]),
                stating=form["stating"].format(place=place, value=value),
                decoys=(
                    form["decoy"].format(place=place),
                    form["stating"].format(place=other, value=other_value),
                ),
                value=value,
            )
        )
    return facts


def write_corpus(facts: Sequence[Fact], uri: str) -> None:
    """Write the documents as JSON Lines, shuffled.

    A file with the same content is not written again, since this would make its shards stale.
    """
    texts = [t for fact in facts for t in (fact.needing, fact.stating, *fact.decoys)]
    random.Random(1).shuffle(texts)  # noqa: S311
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    fs, path = open_uri(uri)
    if not fs.exists(path) or fs.cat_file(path) != content:
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        fs.pipe_file(path, content)
