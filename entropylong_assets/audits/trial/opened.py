"""A trial folder and its model on a device, ready to train and evaluate."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from entropylong_assets.audits.trial.evaluation import (
    means_by_row,
    score_items,
    short_window_losses,
    token_losses,
)
from entropylong_assets.audits.trial.folder import Items, Rows, TrialFolder
from entropylong_assets.audits.trial.natural_text import distance_groups, key_tokens
from entropylong_assets.audits.trial.network import (
    Network,
    folder_of_model,
    load_network,
    rope_theta_of,
)
from entropylong_assets.audits.trial.plan import Plan
from entropylong_assets.audits.trial.training import DeviceRows, Trainer
from entropylong_assets.stages.dtypes import resolve_dtype

Log = Callable[[str], None]

_TOKENIZER_FILES = ("tokenizer", "special_tokens", "vocab", "merges", "chat_template")
"""Beginnings of the names of a tokenizer's files."""


class OpenedTrial:
    """A model for the length of one trial folder, with the folder's data on its device."""

    def __init__(self, folder: TrialFolder, plan: Plan, device: str, log: Log) -> None:
        self.folder, self.facts, self._plan = folder, folder.facts, plan
        self.reference = plan.model or self.facts.model
        dtype = resolve_dtype(plan.dtype or "auto", device)
        self._device = device
        self.network = self._load(self.reference)
        self.trainer = Trainer(self.network, plan.settings, log, getattr(torch, dtype))
        if plan.compile and device.startswith("cuda"):
            self.network.compile_layers()
        self._rows: dict[str, DeviceRows] = {}
        self._items = {
            name: Items(
                *(a[: plan.items] for a in (items.token_ids_NT, items.start_N, items.end_N))
            )
            for name, items in folder.items().items()
        }
        self.evaluation = folder.evaluation_identity()
        self._natural, self._short = folder.documents("natural"), folder.documents("short")
        self._groups = self._group_tokens(self._natural) if self._natural else {}
        log(f"{self.reference}: rotary base {rope_theta_of(self.network):,.0f}, on {device}")

    def _load(self, reference: str) -> Network:
        return load_network(
            reference,
            self.facts.sample_tokens,
            rope_theta=self._plan.rope_theta,
            device=self._device,
        )

    def _group_tokens(self, natural: Rows) -> dict[str, np.ndarray[Any, Any]]:
        """Groups of tokens of natural documents; key tokens are those of the model as it starts."""
        window = self._plan.short_window
        groups = distance_groups(natural)
        with _eager():
            short = short_window_losses(self.network, natural, window)
            long = token_losses(self.network, natural)
        return {**groups, "key": key_tokens(short, long, window)}

    def rows(self, arm: str) -> DeviceRows:
        if arm not in self._rows:
            self._rows[arm] = DeviceRows(self.folder.samples(arm), self.network.device)
        return self._rows[arm]

    def weights(self, reference: str) -> list[torch.Tensor]:
        other = self._load(reference)
        return [p.detach() for p in other.hf_model.parameters() if p.requires_grad]

    def evaluate(self) -> dict[str, dict[str, list[Any]]]:
        """Values by item or document, by the name of the task or text and of the measure."""
        with _eager():
            scores: dict[str, dict[str, list[Any]]] = {
                name: dict(score_items(self.network, items)) for name, items in self._items.items()
            }
            if self._natural is not None:
                losses = token_losses(self.network, self._natural)
                scores["natural"] = dict(means_by_row(losses, self._groups))
                short = short_window_losses(self.network, self._natural, self._plan.short_window)
                far = np.ones_like(losses, dtype=bool)
                far[:, : 2 * self._plan.short_window] = False
                scores["natural"]["context_gain"] = means_by_row(short - losses, {"far": far})[
                    "far"
                ]
            if self._short is not None:
                losses = token_losses(self.network, self._short)
                every = np.ones_like(losses, dtype=bool)
                scores["short"] = dict(means_by_row(losses, {"all": every}))
        return scores

    def save(self, folder: Path) -> None:
        """Write the trained model as it computes, and its tokenizer's files, for transformers."""
        self.network.hf_model.save_pretrained(folder)
        source = Path(folder_of_model(self.reference))
        for file in source.glob("*") if source.is_dir() else ():
            if file.is_file() and file.name.startswith(_TOKENIZER_FILES):
                shutil.copy(file, folder / file.name)


def _eager() -> Any:
    """Run without the compiler, which would compile again for each of the many lengths."""
    return torch.compiler.set_stance("force_eager")
