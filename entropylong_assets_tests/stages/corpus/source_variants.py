"""The same documents as files of every format, compression, encoding, quoting, field and layout.

A `Variant` names one combination. `files_of` writes documents in it, as names and contents; `place`
puts them into a folder and returns the `uri` of a source; `settings_of` gives the source's other
settings. To add a value to a dimension, add it to its mapping below: a layout, for example, is a
function that takes a folder and named contents and returns a `uri` under which all of them lie.

Texts are written with plain rows: `Table` keeps the pieces of each row apart, so that a test can
damage one of them before they are joined.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import itertools
import json
import lzma
import random
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard


class Document(NamedTuple):
    """A document to be written: the source's id, and a text that no other document contains."""

    name: str
    text: str

    @property
    def marker(self) -> str:
        """A part of the text that is in no other document."""
        return self.text[self.text.index("⟦") : self.text.index("⟧") + 1]

    @property
    def doc_id(self) -> str:
        """The expected id, computed independently of the code."""
        lines = "\n".join(self.text.splitlines())
        text = unicodedata.normalize("NFC", lines).strip()
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


SCRIPTS = {
    "latin": "The quick brown fox can't jump over 1,000 lazy dogs: «naïve» café",
    "cyrillic": "Съешь же ещё этих мягких французских булок да выпей чаю",
    "greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "chinese": "敏捷的棕色狐狸跳过懒狗，你好世界。",
    "japanese": "いろはにほへと ちりぬるを 我が世誰ぞ",
    "korean": "다람쥐 헌 쳇바퀴에 타고파",
    "arabic": "نص حكيم له سر قاطع وذو شأن عظيم",
    "hebrew": "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "hindi": "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा",
    "thai": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "emoji": "🦊 👩‍👩‍👧‍👦 🏳️‍🌈 🇺🇳",
    "code": 'def f(a, b):\treturn {"a": [a, b]} if a <= b else "}]"',
}
# How the words of a script become a text: one line, lines, paragraphs, quotes of all kinds.
SHAPES: Mapping[str, Callable[[str], str]] = {
    "line": lambda s: s,
    "lines": lambda s: f"{s}\n{s}, and\n{s}",
    "paragraphs": lambda s: f"{s}.\n\n{s}.\n\n\n{s}",
    "quoted": lambda s: f'"{s}"',
    "quotes within": lambda s: f'{s} "{s}" \'{s}\' ""',
    "begins with a quote": lambda s: f'"Well, {s}',
    "quoted lines": lambda s: f'"{s},"\n"{s}"',
    "delimiters": lambda s: f"{s};{s}|{s}\t{s},{s}",
    "backslashes": lambda s: f"\\{s}\\\\n \\t{s}\\",
}


def make_documents(draw: random.Random, n_documents: int) -> list[Document]:
    """Documents of random scripts and shapes, each with a number of its own in it."""
    documents = []
    for i in range(n_documents):
        script, shape = draw.choice(sorted(SCRIPTS)), draw.choice(sorted(SHAPES))
        text = SHAPES[shape](SCRIPTS[script])
        documents.append(Document(f"d{i}", f"⟦{i}⟧ {text}" if i % 2 else f"{text} ⟦{i}⟧"))
    return documents


class Variant(NamedTuple):
    """How documents are written."""

    format: str
    compression: str = ""
    encoding: str = "utf-8"
    quoting: str = ""
    """Of CSV: a key of QUOTINGS."""
    field: str = "text"
    """The source's text_field; `meta.text` is a path except in CSV."""
    layout: str = "file"

    @property
    def suffix(self) -> str:
        return FORMATS[self.format] + self.compression


FORMATS = {
    "txt": ".txt",
    "markdown": ".md",
    "jsonl": ".jsonl",
    "ndjson": ".ndjson",
    "json list": ".json",
    "json list, indented": ".json",
    "json lines": ".json",
    "json objects": ".json",
    "csv": ".csv",
    "tsv": ".tsv",
    "parquet": ".parquet",
    "parquet, binary": ".parquet",
    "parquet, dictionary": ".parquet",
    "parquet, large": ".parquet",
}
WHOLE_FILES = ("txt", "markdown")
COMPRESSIONS: Mapping[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": lambda content: gzip.compress(content, mtime=0),
    ".zst": lambda content: zstandard.ZstdCompressor(write_checksum=True).compress(content),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")


class Quoting(NamedTuple):
    """How fields of CSV are written, and the source's settings for it."""

    write: Callable[[str, str], str]
    """Takes the field and the delimiter."""
    settings: Mapping[str, Any] = {}


def _doubled(text: str, quote: str = '"') -> str:
    return quote + text.replace(quote, quote * 2) + quote


def _if_needed(text: str, delimiter: str) -> str:
    return _doubled(text) if set(text) & {'"', "\n", "\r", delimiter} or not text else text


QUOTINGS = {
    "if needed": Quoting(_if_needed),
    "all": Quoting(lambda text, _: _doubled(text)),
    "single": Quoting(lambda text, _: _doubled(text, "'"), {"quote": "'"}),
    "backslash": Quoting(
        lambda text, _: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"',
        {"escape": "\\"},
    ),
    "none": Quoting(lambda text, _: text, {"quote": ""}),
}


def _one_file(folder: Path, files: Mapping[str, bytes]) -> str:
    ((name, content),) = files.items()
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    return str(folder / name)


def _folder(folder: Path, files: Mapping[str, bytes]) -> str:
    for name, content in files.items():
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(folder / "in")


LAYOUTS: Mapping[str, Callable[[Path, Mapping[str, bytes]], str]] = {
    "file": _one_file,
    "folder": _folder,
    "nested": lambda folder, files: _folder(
        folder, {f"{i % 2}/{i}/{name}": c for i, (name, c) in enumerate(files.items())}
    ),
    "glob": lambda folder, files: _folder(folder, files) + "/*",
}


@dataclass
class Table:
    """A file of rows: the text before, between and after them, and the pieces of each row."""

    rows: list[list[str]]
    before: str = ""
    between: str = "\n"
    after: str = "\n"
    joined_by: str = ""
    column: int = 0
    """Which piece of a row is the text."""
    header: list[str] = field(default_factory=list)

    def content(self) -> str:
        rows = [self.header, *self.rows] if self.header else self.rows
        joined = self.between.join(self.joined_by.join(row) for row in rows)
        return self.before + joined + self.after


def _record(document: Document, variant: Variant) -> dict[str, Any]:
    outer, _, inner = variant.field.partition(".")
    text = {inner: document.text, "tags": [{"n": 1}]} if inner else document.text
    return {"id": document.name, outer: text, "n": 7}


def table_of(documents: list[Document], variant: Variant) -> Table:
    """The documents as rows of a format of text, not of whole files."""
    if variant.format in ("csv", "tsv"):
        quoting = QUOTINGS[variant.quoting]
        delimiter = delimiter_of(variant)
        write = [quoting.write(name, delimiter) for name in ("id", variant.field, "n")]
        rows = [[quoting.write(v, delimiter) for v in (d.name, d.text, "7")] for d in documents]
        return Table(rows, joined_by=delimiter, column=1, header=write)
    records = [_record(document, variant) for document in documents]
    match variant.format:
        case "json list":
            return Table([[json.dumps(r)] for r in records], "[", ", ", "]")
        case "json list, indented":
            rows = [[json.dumps(r, indent=2, ensure_ascii=False)] for r in records]
            return Table(rows, "[\n", ",\n", "\n]\n")
        case "json objects":
            return Table([[json.dumps(r, indent=1)] for r in records])
        case _:
            return Table([[json.dumps(r, ensure_ascii=False)] for r in records])


def delimiter_of(variant: Variant) -> str:
    """Semicolons for CSV with unusual quotes, since many such files have them."""
    if variant.format == "tsv":
        return "\t"
    return ";" if variant.quoting == "single" else ","


def encode(text: str, encoding: str, *, mark: bool = True) -> bytes:
    """Encode a text, all but UTF-8 with a byte order mark."""
    is_marked = mark and encoding.startswith(("utf-16", "utf-32"))
    return (("\ufeff" if is_marked else "") + text).encode(encoding)


_ARROW = {
    "parquet": pa.string(),
    "parquet, binary": pa.binary(),
    "parquet, large": pa.large_string(),
    "parquet, dictionary": pa.string(),
}


def parquet_of(documents: list[Document], variant: Variant) -> bytes:
    """The documents as Parquet, in row groups of three, with checksums."""
    text = pa.array([d.text for d in documents], pa.string()).cast(_ARROW[variant.format])
    if variant.format == "parquet, dictionary":
        text = text.dictionary_encode()
    outer, _, inner = variant.field.partition(".")
    column = pa.StructArray.from_arrays([text], [inner]) if inner else text
    table = pa.table({"id": [d.name for d in documents], outer: column})
    sink = io.BytesIO()
    pq.write_table(
        table, sink, row_group_size=3, write_page_checksum=True, use_dictionary=False,
        compression="none", write_statistics=False,
    )  # fmt: skip
    return sink.getvalue()


def files_of(documents: list[Document], variant: Variant) -> dict[str, bytes]:
    """Names and contents of the files that hold these documents."""
    compress = COMPRESSIONS[variant.compression]
    if variant.format in WHOLE_FILES:
        return {
            f"{d.name}{variant.suffix}": compress(encode(d.text, variant.encoding))
            for d in documents
        }
    parts = [documents]
    if variant.layout != "file":  # several files, one of them without a document
        parts = [documents[::2], documents[1::2], []]
    files = {}
    for i, part in enumerate(parts):
        if variant.format.startswith("parquet"):
            content = parquet_of(part, variant)
        else:
            table = table_of(part, variant)
            content = compress(encode(table.content(), variant.encoding))
        files[f"part-{i}{variant.suffix}"] = content
    return files


def settings_of(variant: Variant) -> dict[str, Any]:
    """Settings of a source for files of this variant, apart from its uri."""
    values: dict[str, Any] = {}
    if variant.format not in WHOLE_FILES:
        values |= {"text_field": variant.field, "id_field": "id"}
    if variant.format in ("csv", "tsv"):
        values |= QUOTINGS[variant.quoting].settings
        if variant.format == "csv" and delimiter_of(variant) != ",":
            values["delimiter"] = delimiter_of(variant)
    return values


def place(folder: Path, files: Mapping[str, bytes], layout: str) -> str:
    """Write the files and return the uri of a source of them."""
    return LAYOUTS[layout](folder, files)


def can_hold(document: Document, variant: Variant) -> bool:
    """Whether the document can be written at all: without quotes, not every text."""
    if variant.quoting != "none":
        return True
    return not set(document.text) & {"\n", delimiter_of(variant)}


def variants() -> Iterator[Variant]:
    """All combinations that exist."""
    for name in FORMATS:
        is_parquet, is_csv = name.startswith("parquet"), name in ("csv", "tsv")
        yield from itertools.starmap(
            Variant,
            itertools.product(
                [name],
                [""] if is_parquet else COMPRESSIONS,
                ["utf-8"] if is_parquet else ENCODINGS,
                QUOTINGS if is_csv else [""],
                ["text"] if name in WHOLE_FILES else ["text", "meta.text"],
                [layout for layout in LAYOUTS if layout != "file" or name not in WHOLE_FILES],
            ),
        )
