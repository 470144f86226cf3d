"""`show` as plain text: anchors and evidence are marked without colours, with a legend."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from entropylong_assets.cli.inspection import dependency_text, legend
from entropylong_assets.cli.main import app
from entropylong_assets.cli.output import print_corpus, print_dataset
from entropylong_assets.report.show import ShownDependency
from entropylong_assets.stages.entropy.model import load_tokenizer
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.tiny_world import tiny_values


def shown(token: str, evidence: str) -> ShownDependency:
    return ShownDependency(
        before="\n\nlast line of",
        token=token,
        after=" and on\n",
        context_before="\nA note. ",
        evidence=evidence,
        context_after=" The end.\n",
        kind="definition" if evidence else None,
        entropy=3.0,
        entropy_context=1.0,
        gain=0.67,
        calibrated_gain=None,
        root_id="0123456789",
        chunk_id="abc-00001",
        distance=7,
    )


@pytest.mark.parametrize(
    ("token", "evidence", "root", "context"),
    [
        (" word", "The proof.", "…last line of »word« and on…", "A note. [[The proof.]] The end."),
        (" word", " Proof.", "…last line of »word« and on…", "A note.  [[Proof.]] The end."),
        ("\nnext", "", "…last line of\n»next« and on…", "A note.  The end."),
        ("ly", "", "…last line of»ly« and on…", "A note.  The end."),
        ("[bold]", "", "…last line of»[bold]« and on…", "A note.  The end."),
        (":\n", "", "…last line of»:⏎«\n and on…", "A note.  The end."),
        ("  ", "", "…last line of»  « and on…", "A note.  The end."),
    ],
)
def test_anchor_and_evidence_are_marked_in_plain_text(
    token: str, evidence: str, root: str, context: str
) -> None:
    """The failure: marks are colours alone, so that a pipe or a file shows no anchor."""
    wanted = f"root 01234567: {root}\n\ncontext abc-00001: {context}"
    assert dependency_text(shown(token, evidence)).plain == wanted


def test_the_legend_explains_the_marks_that_occur() -> None:
    assert "»anchor«" in legend([shown("a", "")])
    assert "[[evidence]]" not in legend([shown("a", "")])
    assert "[[evidence]]" in legend([shown("a", ""), shown("a", "b")])


def test_show_through_a_pipe_marks_every_anchor(
    world: World, tiny_models: tuple[str, str], tmp_path: Path
) -> None:
    settings = tmp_path / "my.yaml"
    data = Path(world.project.data_uri)
    settings.write_text(json.dumps(tiny_values(world.corpus, data, tiny_models)))
    rows = world.store.read_all(LONG_CONTEXT_SAMPLES, world.shards, "dependencies")
    sample = rows["sample_id"][0]
    ids = next(
        row["input_ids"]
        for row in world.store.read_all(LONG_CONTEXT_SAMPLES, world.shards, "samples").to_dicts()
        if row["sample_id"] == sample
    )
    positions = rows.filter(sample_id=sample)["anchor_position"].to_list()
    tokenizer = load_tokenizer(world.settings.scoring)
    done = CliRunner().invoke(
        app, ["show", sample, "--strongest", "1000", "-s", str(settings)], env={"COLUMNS": "300"}
    )
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.output
    assert f"{len(positions)} verified dependenc" in done.output
    assert "»anchor«: the token of the root" in done.output
    assert done.output.count("»") == len(positions) + 1
    for position in positions:
        token = tokenizer.decode([ids[position]]).lstrip()
        assert not token or f"»{token}«" in done.output


def test_a_missing_sample_is_named_before_a_missing_model(
    world: World, tiny_models: tuple[str, str], tmp_path: Path
) -> None:
    """The failure: a misspelt id ends with an error about a model hub."""
    values = tiny_values(world.corpus, Path(world.project.data_uri), tiny_models)
    values["scoring"] = {**values["scoring"], "model": "nobody/none"}
    settings = tmp_path / "my.yaml"
    settings.write_text(json.dumps(values))
    done = CliRunner().invoke(app, ["show", "tiny-9", "-s", str(settings)])
    assert (done.exit_code, done.output[:24]) == (2, "error: no sample tiny-9;")


def test_no_figure_is_cut_off_in_a_narrow_terminal(
    world: World, tiny_models: tuple[str, str], tmp_path: Path
) -> None:
    """The failure: `0.…` in the table of samples after a run, and a row of zeros for a stage that
    is made by hand only."""
    console = Console(width=50, file=io.StringIO())
    print_corpus(console, world.project, world.project.corpus)
    print_dataset(console, world.project, world.settings)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    samples = printed.partition("Samples of ")[2].partition("Exported")[0]
    assert "verified" in samples
    assert "…" not in samples
    assert "index_segments" not in printed
