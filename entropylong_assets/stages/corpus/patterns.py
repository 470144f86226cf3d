"""Patterns of file names, with the same meaning on every file system.

    *  ?  [a-z]  [!a-z]   within one name
    **                    any number of folders, none included
    {a,b}                 alternatives, which may contain slashes and patterns

As in a shell, a hidden name matches only if the pattern contains its first character: `*` does not
match `.git` or `_SUCCESS`, but `_*` matches the latter.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Iterable
from functools import cached_property

from entropylong_assets.stages.corpus.errors import CorpusError

MAX_ALTERNATIVES = 1_000

ANY_DEPTH = "**"

States = frozenset[int]
"""Places in a pattern that the names read so far may have reached."""


def is_hidden(name: str) -> bool:
    """Whether a name begins with `.` or `_`, as Spark sees it: the folder `_year=2024` does not."""
    return name[:1] in (".", "_") and name not in (".", "..") and not re.match("_.*=", name)


def expand_alternatives(pattern: str) -> list[str]:
    """Return the patterns that `{a,b}` stands for. Braces without a comma stand for themselves.

    Raises CorpusError if there are more than MAX_ALTERNATIVES.
    """
    patterns = list(dict.fromkeys(itertools.islice(_expand(pattern), MAX_ALTERNATIVES + 1)))
    if len(patterns) > MAX_ALTERNATIVES:
        raise CorpusError(
            f"the braces stand for more than {MAX_ALTERNATIVES:,} patterns; use fewer"
        )
    return patterns


def _expand(pattern: str) -> Iterable[str]:
    start = pattern.find("{")
    while start >= 0:
        cuts = _cuts(pattern, start)
        if len(cuts) > 2:
            head, tail = pattern[:start], pattern[cuts[-1] + 1 :]
            for left, right in itertools.pairwise(cuts):
                for option in _expand(pattern[left + 1 : right]):
                    for rest in _expand(tail):
                        yield head + option + rest
            return
        start = pattern.find("{", start + 1)
    yield pattern


def _cuts(pattern: str, start: int) -> list[int]:
    """Places of a brace, of the commas directly in it, and of its end; [] if it never ends."""
    depth, cuts = 0, [start]
    for place in range(start, len(pattern)):
        char = pattern[place]
        depth += (char == "{") - (char == "}")
        if depth == 0 or (depth == 1 and char == ","):
            cuts.append(place)
        if depth == 0:
            return cuts
    return []


class Pattern:
    """A pattern without alternatives, applied to one name of a path after the other."""

    def __init__(self, path: str, *, question_marks: bool = True) -> None:
        """question_marks: whether `?` stands for a character; in a URL it does not."""
        self._wild = "*?[" if question_marks else "*["
        parts = path.split("/")
        first = next((i for i, part in enumerate(parts) if self._is_wild(part)), None)
        self.is_literal = first is None
        """Whether it names one file or folder."""
        self.root = path if first is None else "/".join(parts[:first])
        """The folder in which the files are searched."""
        self.parts = tuple(parts[first:]) if first is not None else (ANY_DEPTH,)
        """The names below the root."""
        if self.parts[-1] == "":  # it ends with a slash: all that is in these folders
            self.parts = (*self.parts[:-1], ANY_DEPTH)
        if self.parts[-1] == ANY_DEPTH:
            self.parts = (*self.parts, "*")

    def _is_wild(self, part: str) -> bool:
        return any(char in part for char in self._wild)

    @property
    def is_bare(self) -> bool:
        """Whether it matches every file: `*`, `**`, `*.*`, or a folder."""
        return not self.parts[-1].strip("*?.")

    @property
    def ending(self) -> str:
        """Last characters of every name that matches."""
        last = self.parts[-1]
        return re.split(f"[{re.escape(self._wild)}]|](?=[^]]*$)", last)[-1]

    @cached_property
    def _names(self) -> list[re.Pattern[str]]:
        parts = (part if "?" in self._wild else part.replace("?", "[?]") for part in self.parts)
        return [re.compile(fnmatch.translate(part.replace("[^", "[!"))) for part in parts]

    def start(self) -> States:
        """Return the states before any name."""
        return self._closure({0})

    def _closure(self, states: set[int]) -> States:
        for state in sorted(states):
            while state < len(self.parts) and self.parts[state] == ANY_DEPTH:
                state += 1
                states.add(state)
        return frozenset(states)

    def step(self, states: States, name: str, *, with_hidden: bool = False) -> States:
        """Return the states after one more name; empty if no path that continues so can match.

        with_hidden: let `*`, `?`, `[` and `**` match hidden names, too.
        """
        after = set()
        for state in states:
            if state == len(self.parts):
                continue
            part = self.parts[state]
            if is_hidden(name) and not with_hidden and part[:1] in self._wild:
                continue
            if part == ANY_DEPTH:
                after.add(state)
            elif self._names[state].match(name):
                after.add(state + 1)
        return self._closure(after)

    def accepts(self, states: States) -> bool:
        """Whether the names read so far are those of a file that matches."""
        return len(self.parts) in states

    def goes_on(self, states: States) -> bool:
        """Whether a file in the folder of the names read so far may match."""
        return any(state < len(self.parts) for state in states)

    def is_unbounded(self, states: States) -> bool:
        """Whether a file at any depth below may match."""
        return any(self.parts[state] == ANY_DEPTH for state in states if state < len(self.parts))
