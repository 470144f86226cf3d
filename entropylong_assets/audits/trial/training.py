"""Continued training of one model on one arm's samples.

AdamW on float32 master weights, a cosine to zero after a warm-up, gradients clipped, losses
averaged over the learnt tokens of a global batch. On CUDA forward and backward passes run on a
bfloat16 copy.

Legend: B samples of one forward pass, T tokens of a sample.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from entropylong_assets.audits.trial.folder import Rows, TrialError
from entropylong_assets.audits.trial.network import Network, shift
from entropylong_assets.audits.trial.training_settings import TrainingSettings


@dataclass(frozen=True)
class Schedule:
    """The steps of a run: which samples each of them learns."""

    order: NDArray[np.int64]
    """Sample numbers, (steps, samples per step)."""

    @classmethod
    def plan(
        cls, samples: int, sample_tokens: int, tokens: int, seed: int, settings: TrainingSettings
    ) -> Schedule:
        """Plan a run over the first `tokens` of an arm, in the order of a seed.

        All arms get the same number of steps, and step by step the same sample numbers. An arm with
        too few samples repeats them: number n stands for n modulo its samples. Raises TrialError if
        the tokens make no step, or an arm would repeat its samples more than `max_repeats` times.
        """
        per_step = max(1, settings.batch_tokens // sample_tokens)
        steps = tokens // (per_step * sample_tokens)
        if not steps:
            raise TrialError(
                f"{tokens:,} tokens make no step of {per_step} samples of {sample_tokens:,} tokens;"
                " raise `tokens` or lower `batch_tokens`"
            )
        needed = steps * per_step
        if needed > settings.max_repeats * samples:
            raise TrialError(
                f"{tokens:,} tokens are {needed:,} samples, but the arm has {samples:,}: more than "
                f"{settings.max_repeats} times each; lower `tokens` or raise `max_repeats`"
            )
        order = np.random.default_rng(seed).permutation(needed) % samples
        return cls(order.reshape(steps, per_step))

    def __len__(self) -> int:
        return len(self.order)

    @property
    def repeats(self) -> float:
        """Mean number of times that a learnt sample is learnt."""
        return self.order.size / len(np.unique(self.order))


def learning_rate_at(step: int, steps: int, settings: TrainingSettings) -> float:
    """The learning rate of a step, from 0: a linear warm-up, then a cosine to zero."""
    rising = max(1, round(settings.warmup * steps))
    if step < rising:
        return settings.learning_rate * (step + 1) / rising
    share = (step - rising) / max(1, steps - rising)
    return settings.learning_rate * (1 + math.cos(math.pi * share)) / 2


class DeviceRows:
    """Samples on the device of the model."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self.token_ids_NT = torch.from_numpy(rows.token_ids_NT.astype(np.int32)).to(device)
        self.lengths_N = torch.from_numpy(rows.lengths_N.astype(np.int64)).to(device)
        weights = rows.weights_NT
        self.weights_NT = None if weights is None else torch.from_numpy(weights).to(device)

    def __len__(self) -> int:
        return len(self.token_ids_NT)

    def batch(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Token ids [B, T] (int64), targets [B, T] and the weight of each target, or None."""
        ids_BT = self.token_ids_NT[numbers].long()
        targets_BT = shift(ids_BT, self.lengths_N[numbers])
        if self.weights_NT is None:
            return ids_BT, targets_BT, None
        # The weight belongs to the token that is predicted, so it moves with the target.
        weights_BT = self.weights_NT[numbers].float().roll(-1, dims=1)
        return ids_BT, targets_BT, weights_BT


class Masters:
    """Float32 weights and gradients of a network that computes in `dtype`.

    network: in float32; its parameters, and nothing else, are converted to `dtype`.
    """

    def __init__(self, network: Network, dtype: torch.dtype = torch.float32) -> None:
        self._used = [p for p in network.hf_model.parameters() if p.requires_grad]
        self._same = dtype == torch.float32
        # `.clone()` keeps the first weights apart from those that training changes.
        self._first = [p.detach().clone() for p in self._used]
        self.weights = self._used if self._same else [nn.Parameter(p.clone()) for p in self._first]
        for parameter in self._used:
            # Not `model.to(dtype)`: that would round the frequencies of the rotary embedding too.
            parameter.data = parameter.data.to(dtype)

    def reset(self, weights: Sequence[Tensor] | None = None) -> None:
        """Return to the first weights, or take others."""
        with torch.no_grad():
            torch._foreach_copy_(list(self.weights), list(weights or self._first))
        self.publish()
        for parameter in (*self.weights, *self._used):
            parameter.grad = None

    def collect(self) -> None:
        """Add the gradients of a backward pass to those of the masters."""
        if self._same:
            return
        for master, used in zip(self.weights, self._used, strict=True):
            if used.grad is None:
                continue
            if master.grad is None:
                master.grad = used.grad.float()
            else:
                master.grad.add_(used.grad)
            used.grad = None

    def publish(self) -> None:
        """Copy the masters to the weights that compute."""
        if not self._same:
            with torch.no_grad():
                torch._foreach_copy_([p.data for p in self._used], list(self.weights))

    def optimizer(self, settings: TrainingSettings) -> torch.optim.AdamW:
        matrices = [p for p in self.weights if p.ndim >= 2]
        others = [p for p in self.weights if p.ndim < 2]
        return torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": settings.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            fused=self.weights[0].is_cuda or None,
        )


@dataclass
class _State:
    """What a checkpoint holds beside weights and optimizer."""

    step: int = 0
    seconds: float = 0.0
    losses: list[float] | None = None
    """Mean loss of every `log_steps` steps."""


@dataclass(frozen=True)
class Trained:
    steps: int
    tokens: int
    seconds: float
    losses: list[float]
    repeats: float


class Trainer:
    """Trains one network again and again from the same weights."""

    def __init__(
        self,
        network: Network,
        settings: TrainingSettings,
        log: Callable[[str], None] = lambda _: None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """network: in float32. dtype: of forward and backward passes."""
        self.network = network
        self.masters = Masters(network, dtype)
        self.settings = settings
        self._log = log

    def train(
        self,
        rows: DeviceRows,
        schedule: Schedule,
        checkpoint: Path,
        on_step: Callable[[int], None] = lambda _: None,
        start: Sequence[Tensor] | None = None,
    ) -> Trained:
        """Train; the network then has the trained weights. Continues an interrupted run.

        checkpoint: file of this run alone; the caller removes it once the run's result is kept.
        on_step: called with the number of finished steps. start: first weights, if others.
        """
        self.masters.reset(start)
        optimizer = self.masters.optimizer(self.settings)
        state = self._resume(checkpoint, optimizer)
        sample_tokens = rows.token_ids_NT.shape[1]
        step_tokens = schedule.order.shape[1] * sample_tokens
        begun, saved, logged = state.seconds, time.monotonic(), time.monotonic()
        clock = time.monotonic()
        sums: list[Tensor] = []
        while state.step < len(schedule):
            rate = learning_rate_at(state.step, len(schedule), self.settings)
            sums.append(self._step(rows, schedule.order[state.step], optimizer, rate))
            state.step += 1
            on_step(state.step)
            last = state.step == len(schedule)
            if state.step % self.settings.log_steps == 0 or last:
                loss = torch.stack(sums).mean().item()  # waits for the device
                state.losses = [*(state.losses or []), loss]
                now = time.monotonic()
                speed = len(sums) * step_tokens / (now - logged)
                sums, logged = [], now
                self._log(
                    f"step {state.step}/{len(schedule)}: loss {loss:.4f}, learning rate "
                    f"{rate:.2e}, {speed:,.0f} tokens/s"
                )
                # Only here: the mean of the next losses then starts afresh in a resumed run too.
                if last or now - saved >= self.settings.checkpoint_seconds:
                    state.seconds = begun + now - clock
                    self._save(checkpoint, optimizer, state)
                    saved = logged = time.monotonic()
        return Trained(
            state.step,
            state.step * step_tokens,
            state.seconds,
            state.losses or [],
            schedule.repeats,
        )

    def _step(
        self, rows: DeviceRows, numbers: NDArray[np.int64], optimizer: Any, rate: float
    ) -> Tensor:
        """One optimizer step; returns its mean loss, on the device."""
        picked = torch.from_numpy(numbers).to(rows.token_ids_NT.device)
        size = max(1, self.settings.micro_batch_tokens // rows.token_ids_NT.shape[1])
        learnt = (rows.lengths_N[picked] - 1).sum()
        total = torch.zeros((), device=picked.device)
        self.network.hf_model.train()
        for part in picked.split(size):
            ids_BT, targets_BT, weights_BT = rows.batch(part)
            hidden_ND = self.network.hidden(ids_BT).flatten(0, 1)
            losses_N = self.network.losses(hidden_ND, targets_BT.flatten())
            if weights_BT is not None:
                losses_N = losses_N * weights_BT.flatten()
            loss = losses_N.sum() / learnt
            loss.backward()
            self.masters.collect()
            total += loss.detach()
        for group in optimizer.param_groups:
            group["lr"] = rate
        nn.utils.clip_grad_norm_(self.masters.weights, self.settings.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.masters.publish()
        return total

    def _save(self, file: Path, optimizer: Any, state: _State) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        content = {
            "weights": [p.detach() for p in self.masters.weights],
            "optimizer": optimizer.state_dict(),
            "state": vars(state),
        }
        torch.save(content, part)
        os.replace(part, file)

    def _resume(self, file: Path, optimizer: Any) -> _State:
        if not file.exists():
            return _State()
        content = torch.load(file, map_location=self.network.device, weights_only=True)
        self.masters.reset(content["weights"])
        optimizer.load_state_dict(content["optimizer"])
        state = _State(**content["state"])
        self._log(f"continues at step {state.step} of an interrupted run")
        return state
