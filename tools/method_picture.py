"""Draws the method: `python -m tools.method_picture` writes docs/images/method-*.svg.

One file for light pages and one for dark ones. The figures of the third step are those of the
dependency that README.md shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "images"
WIDTH, HEIGHT = 980, 460
FONT = "-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Colours:
    """Colours of one version of the picture."""

    page: str
    text: str
    faint: str
    line: str
    root: str
    anchor: str
    context: str
    control: str
    filled: str


LIGHT = Colours(
    "#ffffff",
    "#1f2328",
    "#59636e",
    "#b7bfc8",
    "#ffe2b8",
    "#bc4c00",
    "#b6d9ff",
    "#e0e4e9",
    "#f3f5f7",
)
DARK = Colours(
    "#0d1117",
    "#f0f6fc",
    "#9aa5b1",
    "#4b5561",
    "#5c4420",
    "#ff9d4d",
    "#1f4f86",
    "#3a424c",
    "#1c2128",
)


class Picture:
    """SVG elements in the order in which they are drawn."""

    def __init__(self, colours: Colours) -> None:
        self.colours = colours
        self._parts: list[str] = []

    def rectangle(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" '
            f'fill="{fill}" stroke="{self.colours.line}"/>'
        )

    def path(self, data: str, colour: str, dashed: bool = False, arrow: bool = False) -> None:
        extra = ' stroke-dasharray="5 4"' if dashed else ""
        extra += ' marker-end="url(#arrow)"' if arrow else ""
        self._parts.append(
            f'<path d="{data}" fill="none" stroke="{colour}" stroke-width="1.6"{extra}/>'
        )

    def text(
        self, x: float, y: float, lines: Sequence[str] | str, *, size: int = 13, kind: str = ""
    ) -> None:
        """Write lines of text. kind: `title`, `faint`, `anchor`, or empty."""
        colour = {"faint": self.colours.faint, "anchor": self.colours.anchor}.get(
            kind, self.colours.text
        )
        weight = ' font-weight="600"' if kind in ("title", "anchor") else ""
        for i, line in enumerate([lines] if isinstance(lines, str) else lines):
            self._parts.append(
                f'<text x="{x:g}" y="{y + i * size * 1.35:g}" font-size="{size}" '
                f'fill="{colour}"{weight}>{escape(line)}</text>'
            )

    def svg(self) -> str:
        body = "\n".join(self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'font-family="{FONT}" role="img">\n'
            "<title>How EntropyLong makes a sample: anchors of a root document, candidate "
            "contexts, verification against control contexts, concatenation</title>\n"
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{self.colours.faint}"/>'
            "</marker></defs>\n"
            f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{self.colours.page}"/>\n'
            f"{body}\n</svg>\n"
        )


ENTROPIES = (9, 16, 7, 20, 12, 8, 62, 14, 10, 22, 11, 15, 8, 58, 12, 18, 9)
THRESHOLD = 44
"""Heights of the bars of step 1, and of the line that anchors exceed (pixels)."""


def root(picture: Picture, x: float, y: float) -> None:
    """Step 1: a root document with an entropy for each token, and its anchors."""
    colours = picture.colours
    picture.text(x, y, "1  Root document", size=15, kind="title")
    base = y + 96
    for i, height in enumerate(ENTROPIES):
        above = height > THRESHOLD
        left = x + i * 15.5
        picture.rectangle(
            left, base - height, 12, height, colours.anchor if above else colours.filled
        )
        picture.rectangle(left, base + 5, 12, 13, colours.anchor if above else colours.root)
    picture.path(f"M{x:g} {base - THRESHOLD}h{15.5 * len(ENTROPIES):g}", colours.faint, dashed=True)
    picture.text(x + 150, base - THRESHOLD - 6, "μ + α·σ", size=12, kind="faint")
    picture.text(x, base + 38, "anchor: a token position at which the model", kind="anchor")
    picture.text(x, base + 56, "is uncertain (its entropy H is high)", kind="anchor")


def candidates(picture: Picture, x: float, y: float) -> None:
    """Step 2: the chunks of other documents that are nearest to an anchor."""
    colours = picture.colours
    picture.text(x, y, "2  Candidate contexts", size=15, kind="title")
    for i in range(4):
        picture.rectangle(x + 10 * i, y + 24 + 17 * i, 190, 13, colours.context)
    picture.text(
        x,
        y + 117,
        (
            "candidate: one of the K chunks of other",
            "documents that are most similar to the",
            "text around the anchor",
        ),
    )


def verification(picture: Picture, x: float, y: float) -> None:
    """Step 3: the entropy at the anchor alone, given controls, and given a candidate."""
    colours = picture.colours
    picture.text(x, y, "3  Verification", size=15, kind="title")
    rows = (
        ("", colours.root, 5.92, "5.92 nats: the root alone"),
        ("control", colours.control, 5.76, "5.8: after random chunks"),
        ("candidate", colours.context, 3.21, "3.21: after the candidate"),
    )
    for i, (name, fill, entropy, label) in enumerate(rows):
        top = y + 20 + 28 * i
        if name:
            picture.rectangle(x, top, 44, 16, fill)
        picture.rectangle(x + 47, top, 44, 16, colours.root)
        picture.path(f"M{x + 78:g} {top}v16", colours.anchor)
        picture.rectangle(x + 99, top + 3, 9 * entropy, 10, colours.anchor)
        picture.text(x + 160, top + 13, label, size=12)
    picture.text(
        x,
        y + 117,
        (
            "control context: a random chunk as baseline.",
            "The candidate lowers H by far more, so the",
            "(anchor, context) pair is a dependency.",
        ),
    )


def sample(picture: Picture, x: float, y: float) -> None:
    """Step 4: contexts and roots in one sample, with an arc for each dependency."""
    colours = picture.colours
    picture.text(
        x, y, "4  Sample: exactly 131,072 tokens of contexts and roots", size=15, kind="title"
    )
    top, height = y + 100, 34
    pieces = (
        (130, colours.context, "context"),
        (120, colours.control, "hard negative"),
        (90, colours.context, "context"),
        (190, colours.root, "root"),
        (110, colours.context, "context"),
        (150, colours.root, "root"),
        (142, colours.filled, "padding"),
    )
    starts = [x]
    for width, fill, label in pieces:
        picture.rectangle(starts[-1], top, width, height, fill)
        picture.text(starts[-1] + 8, top + 22, label)
        starts.append(starts[-1] + width)
    dependencies = ((0, 3, 150), (2, 3, 90), (4, 5, 90))
    for context, of_root, offset in dependencies:
        start, end = starts[context] + pieces[context][0] / 2, starts[of_root] + offset
        bend = top - 22 - (end - start) / 9
        picture.path(
            f"M{start:g} {top}C{start:g} {bend:g} {end:g} {bend:g} {end:g} {top - 2}",
            colours.faint,
            arrow=True,
        )
        picture.rectangle(end - 2, top, 4, height, colours.anchor)
    picture.text(
        x,
        top + 62,
        (
            "dependency (arc): an anchor and a verified context that lowers its entropy, stored "
            "with its scores and its place in the sample",
            "hard negative: a rejected candidate of the same root.  "
            "padding: fills the rest and is masked from the loss.",
        ),
    )


def draw(colours: Colours) -> str:
    """Return the picture as SVG."""
    picture = Picture(colours)
    root(picture, 24, 34)
    candidates(picture, 345, 34)
    verification(picture, 662, 34)
    for x in (308, 622):
        picture.path(f"M{x} 84h24", colours.faint, arrow=True)
    picture.path("M24 226h932", colours.line)
    sample(picture, 24, 256)
    return picture.svg()


if __name__ == "__main__":
    for name, chosen in (("light", LIGHT), ("dark", DARK)):
        (FOLDER / f"method-{name}.svg").write_text(draw(chosen), encoding="utf-8")
