"""False alarms and misses of the check for quotes that swallow rows of a CSV file.

    python -m benchmarks.csv_quotes [--packages numpy,sklearn,pandas,scipy.stats,stdlib,torch]

The texts are the documentation of installed packages. False alarms: documents and paragraphs of
several lines, written by Python's `csv` to tables of 1 to 4 columns, that are taken for rows.
Misses: lines written as rows without quoting. Sixteen times in 400 rows, a quote is put at the
start of a row and another one at the end of a row up to eight rows later. A miss is a text that
contains several rows.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence

from entropylong_assets.stages.corpus.csv_records import Dialect, Record, read_records
from entropylong_assets.stages.corpus.formats import python_docs
from entropylong_assets.stages.corpus.streams import Line

COLUMNS = (
    ["id", "text"],
    ["text", "id"],
    ["id", "text", "license"],
    ["title", "text"],
    ["text"],
    ["id", "title", "text", "n"],
)
DELIMITERS = ",\t;|"
N_TEXTS, N_TABLES, N_ROWS, STEP = 1500, 20, 400, 25


def _lines(content: str) -> Callable[[], Iterator[Line]]:
    return lambda: (Line(i, line.encode()) for i, line in enumerate(content.split("\n")))


def _values(columns: Sequence[str], number: int, text: str) -> list[str]:
    title = text.split("\n")[0][:60].strip() or "x"
    row = {"id": str(number), "text": text, "license": "mit", "title": title, "n": str(number * 7)}
    return [row[column] for column in columns]


def _records(content: str, delimiter: str) -> list[Record]:
    records = read_records(_lines(content), Dialect(delimiter), "text")
    return [item for item in records if isinstance(item, Record)][1:]


def false_alarms(texts: Sequence[str], draw: random.Random) -> tuple[int, int]:
    """Count texts that are not read, and texts written."""
    lost = written = 0
    quotings = (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    for columns, delimiter, quoting in itertools.product(COLUMNS, DELIMITERS, quotings):
        sample = draw.sample(texts, min(N_TEXTS, len(texts)))
        file = io.StringIO(newline="")
        writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(_values(columns, i, text) for i, text in enumerate(sample))
        lost += len(sample) - len(_records(file.getvalue(), delimiter))
        written += len(sample)
    return lost, written


def misses(lines: Sequence[str], draw: random.Random) -> tuple[int, int]:
    """Count texts that are several rows, and quotes that could have swallowed rows."""
    merged = quotes = 0
    for columns, delimiter, _ in itertools.product(COLUMNS, DELIMITERS, range(N_TABLES)):
        sample = [line.replace(delimiter, " ") for line in draw.sample(lines, N_ROWS)]
        for i in range(0, N_ROWS - 8, STEP):
            j = i + draw.randint(1, 8)
            sample[i] = '"' + sample[i].replace('"', "")
            sample[j] = sample[j].replace('"', "") + '"'
            quotes += 1
        rows = [delimiter.join(_values(columns, i, text)) for i, text in enumerate(sample)]
        content = "\n".join([delimiter.join(columns), *rows])
        merged += sum(
            any("\n" in value for value in record.values) for record in _records(content, delimiter)
        )
    return merged, quotes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", default="numpy,sklearn,pandas,scipy.stats,stdlib,torch")
    names = parser.parse_args().packages.split(",")
    documents = [doc.text for name in names for doc in python_docs.read(name)]
    split = [part for text in documents for part in re.split(r"\n\s*\n", text)]
    paragraphs = [text for text in split if "\n" in text]
    print(f"{len(documents):,} documents of {', '.join(names)}")
    draw = random.Random(0)
    for name, texts in {
        "documents": documents,
        "paragraphs": paragraphs,
        "paragraphs of two lines": [text for text in paragraphs if text.count("\n") == 1],
    }.items():
        lost, written = false_alarms(texts, draw)
        print(f"{name}: {lost:,} of {written:,} taken for rows")
    lines = [line.strip() for text in documents for line in text.split("\n")]
    lines = [line for line in lines if len(line) > 20]
    merged, quotes = misses(lines, draw)
    print(f"rows: {merged:,} of {quotes:,} quotes joined rows silently")


if __name__ == "__main__":
    main()
