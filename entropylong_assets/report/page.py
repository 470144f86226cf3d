"""One HTML file that holds the whole report: data, drawing library, style and scripts.

Nothing is fetched. The content security policy names the hash of each script, so that no other
script can run, and forbids all connections; texts of the corpus come in as JSON and are put on
the page as text nodes.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from entropylong_assets.report.charts import all_charts
from entropylong_assets.report.details import HOW_CHOSEN
from entropylong_assets.report.proof_charts import proof_charts
from entropylong_assets.report.run import RunSource, TokenizerFor, choose, gather_run, open_run
from entropylong_assets.report.text import as_json
from entropylong_assets.settings.model import Settings
from entropylong_assets.stages.entropy.model import load_tokenizer
from entropylong_assets.storage.tables import TableStore


class ReportError(ValueError):
    """The report can't be written. One line that says what to do."""


_FOLDER = Path(__file__).parent / "page"
_SCRIPTS = ("dom.js", "root_view.js", "sample_view.js", "page.js")
_LABELS = ("run A", "run B")


@functools.cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, of the version that Altair writes for."""
    import altair as alt
    import vl_convert

    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    script = vl_convert.javascript_bundle(vl_version=version)  # type: ignore[call-arg]
    # Inside a string this reads the same; as markup it would end the element.
    return re.sub(r"</(?=script)", r"<\\/", script, flags=re.IGNORECASE)


def _hash(script: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"


def page(content: Mapping[str, Any]) -> str:
    """The HTML of `content`: runs, charts, proof, how_chosen, as page.js reads them."""
    scripts = [_vega(), "\n".join((_FOLDER / name).read_text("utf-8") for name in _SCRIPTS)]
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(_hash(script) for script in scripts)}",
            "style-src 'unsafe-inline'",  # Vega sets style attributes
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    parts = {
        "policy": policy,
        "style": (_FOLDER / "page.css").read_text("utf-8"),
        "data": as_json(content),
        "vega": scripts[0],
        "script": scripts[1],
    }
    template = (_FOLDER / "page.html").read_text("utf-8")
    # In one pass: a text of the corpus may look like a placeholder.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def render(sources: Sequence[RunSource], tokenizer_for: TokenizerFor = load_tokenizer) -> str:
    """The report of one run, or of two side by side, as HTML.

    Raises TableError where a table is missing, ModelError where a tokenizer is.
    """
    wanted: dict[str, str] = {}
    for source in sources:
        for root_id, why in choose(source).items():
            wanted.setdefault(root_id, why)
    cached = functools.cache(tokenizer_for)
    labels = _LABELS if len(sources) > 1 else (sources[0].settings.profile,)
    gathered = [
        gather_run(source, label, wanted, cached)
        for source, label in zip(sources, labels, strict=True)
    ]
    epsilons = [source.settings.verification.epsilon for source in sources]
    return page(
        {
            "runs": [run for run, _ in gathered],
            "charts": all_charts([charts for _, charts in gathered], epsilons),
            "proof": proof_charts([charts for _, charts in gathered]),
            "how_chosen": HOW_CHOSEN,
        }
    )


def save_report(settings: Settings, file: str | None = None, against: str | None = None) -> str:
    """Writes the report to `file`, or beside the data; returns where it is.

    Raises ReportError where the file can't be written, and what `make_report` raises.
    """
    html = make_report(settings, against=against).encode()
    if file is None:
        store = TableStore(settings.data_uri)
        store.put(f"{store.root}/report.html", html)
        return f"{settings.data_uri}/report.html"
    try:
        Path(file).write_bytes(html)
    except OSError as error:
        raise ReportError(f"{file}: {error.strerror}; name another file with --out") from None
    return file


def make_report(
    settings: Settings,
    *,
    shards: Sequence[str] | None = None,
    against: str | None = None,
    tokenizer_for: Callable[..., Any] = load_tokenizer,
) -> str:
    """The report on these shards, or on all that have samples, as HTML.

    against: URI of another run's data, to be shown side by side.
    """
    sources = [open_run(settings, shards)]
    if against:
        sources.append(open_run(settings, data_uri=against.rstrip("/")))
    return render(sources, tokenizer_for)
