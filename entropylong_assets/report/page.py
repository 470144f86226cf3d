"""The report as one HTML file: data, drawing library, style and scripts.

The page fetches nothing. Its content security policy names the hash of each script, so that no
other script can run, and forbids all connections. Texts of the corpus are embedded as JSON and
shown as text nodes.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from entropylong_assets.report.charts import all_charts
from entropylong_assets.report.comparison import compare_datasets
from entropylong_assets.report.details import HOW_CHOSEN
from entropylong_assets.report.proof_charts import proof_charts
from entropylong_assets.report.run import RunSource, TokenizerFor, choose, gather_run, open_dataset
from entropylong_assets.report.text import as_json
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.entropy.model import load_tokenizer
from entropylong_assets.stages.entropy.weights import cache_folder
from entropylong_assets.stages.verification.registry import gain_limit
from entropylong_assets.storage.folders import locked, replace_file


class ReportError(ValueError):
    """The report can't be written. The message is one line that says what to do."""


_FOLDER = Path(__file__).parent / "page"
_SCRIPTS = ("dom.js", "root_view.js", "sample_view.js", "page.js")


@functools.cache
def _vega() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, in the version that Altair targets.

    Bundling takes longer than the rest of a report. So the script is stored in the cache folder,
    together with the hash of its bytes; a damaged script is bundled again.
    """
    import altair as alt

    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    name = f"vega-lite-{version}-by-{installed_version('vl-convert-python')}.js"
    kept = cache_folder() / name
    with contextlib.suppress(OSError, ValueError):
        digest, script = kept.read_text("utf-8").split("\n", 1)
        if digest == hashlib.sha256(script.encode()).hexdigest():
            return script
    script = _bundle(version)
    with contextlib.suppress(OSError):  # if it can't be stored, the next process bundles again
        kept.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(script.encode()).hexdigest()
        with locked(kept.parent):
            replace_file(kept, f"{digest}\n{script}".encode())
    return script


def _bundle(version: str) -> str:
    import vl_convert

    script = vl_convert.javascript_bundle(vl_version=version)  # type: ignore[call-arg]
    # `</script` would end the element. In a string of the script, `<\/script` means the same.
    return re.sub(r"</(?=script)", r"<\\/", script, flags=re.IGNORECASE)


def _hash(script: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"


def page(content: Mapping[str, Any]) -> str:
    """Return the HTML.

    content: title, runs, overlap, charts, proof, how_chosen, as page.js reads them.
    """
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
        "title": html.escape(content["title"]),
        "style": (_FOLDER / "page.css").read_text("utf-8"),
        "data": as_json(content),
        "vega": scripts[0],
        "script": scripts[1],
    }
    template = (_FOLDER / "page.html").read_text("utf-8")
    # In one pass, because a text of the corpus may look like a placeholder.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def render(sources: Sequence[RunSource], tokenizer_for: TokenizerFor = load_tokenizer) -> str:
    """Return the report of one dataset, or of two side by side, as HTML.

    Raises TableError if a table is missing, ModelError if a tokenizer can't be loaded.
    """
    wanted: dict[str, str] = {}
    for source in sources:
        for root_id, why in choose(source).items():
            wanted.setdefault(root_id, why)
    cached = functools.cache(tokenizer_for)
    gathered = [
        gather_run(source, label, wanted, cached)
        for source, label in zip(sources, _labels(sources), strict=True)
    ]
    limits = [gain_limit(source.settings.verification) for source in sources]
    title = " and ".join(run["label"] for run, _ in gathered)
    return page(
        {
            "title": f"{title} · EntropyLong report",
            "runs": [run for run, _ in gathered],
            "overlap": compare_datasets(*sources).overlap_lines() if len(sources) > 1 else [],
            "charts": all_charts([charts for _, charts in gathered], limits),
            "proof": proof_charts([charts for _, charts in gathered]),
            "how_chosen": HOW_CHOSEN,
        }
    )


def _labels(sources: Sequence[RunSource]) -> list[str]:
    """Names of the datasets; numbered if they are the same, as in two data folders."""
    names = [source.name for source in sources]
    if len(set(names)) == len(names):
        return names
    return [f"{name} {letter}" for name, letter in zip(names, "AB", strict=True)]


def save_report(
    settings: Settings,
    file: str | None = None,
    against: Settings | None = None,
    tokenizer_for: TokenizerFor = load_tokenizer,
) -> str:
    """Write the report to `file`, or to report.html in the dataset's folder; return its place.

    Raises ReportError if the file can't be written, and the errors of `make_report`.
    """
    content = make_report(settings, against=against, tokenizer_for=tokenizer_for).encode()
    if file is None:
        store = open_dataset(settings).store
        store.put(f"{store.root}/{store.dataset}/report.html", content)
        return f"{store.dataset_uri}/report.html"
    try:
        Path(file).write_bytes(content)
    except OSError as error:
        raise ReportError(f"{file}: {error.strerror}; name another file with --out") from None
    return file


def make_report(
    settings: Settings,
    *,
    shards: Sequence[str] | None = None,
    against: Settings | None = None,
    tokenizer_for: TokenizerFor = load_tokenizer,
) -> str:
    """Return the report on a dataset as HTML.

    shards: None for all that have samples. against: settings of a dataset to show side by side; it
    may be over another corpus, or in another data folder.
    """
    sources = [open_dataset(settings, shards=shards)]
    if against is not None:
        sources.append(open_dataset(against))
    return render(sources, tokenizer_for)
