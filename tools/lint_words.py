"""Finds words that make our English hard to read: `python -m tools.lint_words` (in `make lint`).

CONTRIBUTING.md has the rules of style. This finds the worst words, by patterns with few false
alarms. A line that needs such a word ends with a comment that contains `words: allow`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
FOLDERS = (
    "entropylong_assets",
    "entropylong_assets_tests",
    "benchmarks",
    "docs",
    "deploy",
    "tools",
)
FILES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml")
SUFFIXES = {".py", ".md", ".sql", ".js", ".html", ".css", ".yaml", ".toml", ".sh"}
EXEMPT = (
    "docs/evidence.md",  # written by audits/, which is checked
    "docs/evidence-large.md",
    "entropylong_assets/audits/planted.py",  # stories, not our own prose
    "entropylong_assets_tests/stages/retrieval/near_copy_texts.yaml",
    "entropylong_assets_tests/test_planted_facts.py",
    "benchmarks/genuine/RUBRIC.md",  # pairs were labelled by this very text
    "entropylong_assets_tests/test_lint_words.py",
    "tools/lint_words.py",
)
ALLOWED = "words: allow"

_PLURALS = (
    "anchors|bytes|candidates|chunks|contexts|controls|dependencies|documents|pairs|passes|queries|"
    "roots|rows|samples|tokens"
)
_UNITS = (
    "anchor|batch|call|character|chunk|context|dataset|day|document|file|hour|minute|month|pair|"
    "query|root|row|sample|second|shard|source|step|tick|token|week"
)
_ENDS = r"(?= by\b| at\b| in\b| of\b| and\b|\s*(?:[.,;:)|»”\"']|$))"

PATTERNS: dict[str, str] = {
    r"\bbehind\b(?! (?:a |the )?(?:links?|proxy|login)\b)": "given a context; after; left over",
    r"\btold\b(?! apart)": "say the thing itself: the message, a parameter, `unless set otherwise`",
    r"\bcame\b": "say what happened: was found, follows, occurs",
    r"\b(?:none|nothing) where\b|\bwhere nothing\b": "`None if …`, `if nothing …`",
    rf"\b(?:{_PLURALS}) an? (?:{_UNITS})\b{_ENDS}": "per",
    rf"\d\w* an? (?:{_UNITS})\b": "per",
    r"\bworth\b": "gain",
    r"\bgone\b": "missing, deleted, ended",
    r"(?<!by )\bchance\b": "false-acceptance rate",
    r"\b(?:is|are|stays?) current\b|\bstays_current\b": "up to date",
    r"\bexaminations?\b": "check",
    rf"\bmost (?:{_PLURALS}) (?:that|per|an?)\b": "maximum number of",
    r"\bbears?\b": "has, contains",
    r"\bsome \d": "about",
    r"\bnought\b|\bthereof\b|\bwhereof\b|\bwhence\b": "plain words",
    r"\bfor ever\b": "forever",
    r"\banew\b": "again",
    r"\bmend(?:s|ing)?\b": "correct, fix",
    r"\basked back\b": "brought back",
    r"\bas (?:it is|they are) now\b": "the present data, the present version",
    r"\bwhatever (?:it|they) likes?\b": "may raise any error",
    r"\bwhat (?:became|becomes) of\b": "the result of",
}


def find(text: str) -> Iterator[tuple[int, str, str]]:
    """Iterate over the words to avoid: number of the line, the word, what to write instead."""
    for number, line in enumerate(text.splitlines(), 1):
        if ALLOWED not in line:
            for pattern, instead in PATTERNS.items():
                for match in re.finditer(pattern, line, re.IGNORECASE):
                    yield number, match[0], instead


def files() -> Iterator[Path]:
    """Iterate over the files that are checked."""
    for name in FILES:
        if (REPOSITORY / name).exists():
            yield REPOSITORY / name
    for folder in FOLDERS:
        for path in sorted((REPOSITORY / folder).rglob("*")):
            name = path.relative_to(REPOSITORY).as_posix()
            if path.suffix in SUFFIXES and name not in EXEMPT:
                yield path


def main() -> int:
    """Print a line per word found. Returns the exit code: 1 if there is one."""
    n = 0
    for path in files():
        for number, word, instead in find(path.read_text(encoding="utf-8")):
            n += 1
            print(f"{path.relative_to(REPOSITORY)}:{number}: {word!r}; instead: {instead}")
    return 1 if n else 0


if __name__ == "__main__":
    sys.exit(main())
