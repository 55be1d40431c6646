"""One way to learn for all parts of toyworld: steps that depend on their number alone, and checkpoints.

A step's randomness comes from the seed and the step's number, so a stage that was stopped and resumed ends
with the very weights of one that was not.
"""

import math
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SAVE_EVERY = 180.0
"""Seconds between checkpoints."""

TELL_EVERY = 60.0
"""Seconds between lines of progress."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast a stage learns.

    `rate` is AdamW's peak learning rate; it rises over the first `warm` of the steps and falls along a cosine
    to `floor` of the peak. `decay` is the weight decay. `ema` is the share that the averaged weights keep per
    step, at most; 0 averages nothing.
    """

    name: str
    steps: int
    batch: int
    rate: float
    decay: float = 0.01
    warm: float = 0.03
    floor: float = 0.01
    ema: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise ValueError(
                f"{self.name}: {self.steps} steps of {self.batch} samples; both must be at least 1"
            )

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        done = step / self.steps
        if done < self.warm:
            return self.rate * (step + 1) / (self.warm * self.steps + 1)
        turn = math.pi * (done - self.warm) / (1 - self.warm)
        return self.rate * (self.floor + (1 - self.floor) * (1 + math.cos(turn)) / 2)

    def draw(self, step: int, rank: int = 0) -> tuple[np.random.Generator, torch.Generator]:
        """Give the randomness of a step, for NumPy and for torch (on the CPU)."""
        sequence = np.random.SeedSequence((self.seed, step, rank))
        seed = int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
        return np.random.default_rng(sequence), torch.Generator().manual_seed(seed)


class Learner:
    """Weights on their way: AdamW, gradients cut to norm 1, an average of the weights, a checkpoint file."""

    def __init__(self, plan: Plan, weights: Sequence[nn.Parameter], file: Path) -> None:
        self.plan, self.weights, self.step = plan, list(weights), 0
        self._file = file
        self._optimizer = torch.optim.AdamW(self.weights, plan.rate, plan.betas, weight_decay=plan.decay)
        self._average = [weight.detach().clone() for weight in self.weights]
        if file.exists():
            self._resume()

    def learn(self, loss: Tensor, share: Callable[[Tensor], None] | None = None) -> None:
        """Take one step down; `share` averages the flat gradients of several processes in place."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if share is not None:
            self._share_gradients(share)
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = self.plan.rate_at(self.step)
        self._optimizer.step()
        self.step += 1
        if self.plan.ema:
            keep = min(self.plan.ema, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(self._average, list[Tensor](self.weights), 1 - keep)

    def save(self) -> None:
        """Keep everything that the next step needs, aside first, so that a crash leaves the last checkpoint."""
        state = {
            "plan": asdict(self.plan),
            "step": self.step,
            "weights": [weight.detach() for weight in self.weights],
            "average": self._average,
            "optimizer": self._optimizer.state_dict(),
        }
        aside = self._file.with_suffix(".aside")
        torch.save(state, aside)
        aside.replace(self._file)

    def use_average(self) -> None:
        """Put the averaged weights in the place of the last ones, where there is an average."""
        if self.plan.ema:
            with torch.no_grad():
                torch._foreach_copy_(list[Tensor](self.weights), self._average)

    def _resume(self) -> None:
        state = torch.load(self._file, map_location="cpu", weights_only=True)
        if state["plan"] != asdict(self.plan):
            changed = changes(state["plan"], asdict(self.plan))
            raise ValueError(
                f"{self._file} was begun with other settings ({changed}); keep them, or choose another --work"
            )
        self.step = state["step"]
        with torch.no_grad():
            for own, average, kept, kept_average in zip(
                self.weights, self._average, state["weights"], state["average"], strict=True
            ):
                own.copy_(kept)
                average.copy_(kept_average)
        self._optimizer.load_state_dict(state["optimizer"])

    def _share_gradients(self, share: Callable[[Tensor], None]) -> None:
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        flat = nn.utils.parameters_to_vector(gradients)
        share(flat)
        nn.utils.vector_to_parameters(flat, gradients)


def learn(
    learner: Learner,
    loss_at: Callable[[int], Tensor],
    *,
    share: Callable[[Tensor], None] | None = None,
    tell: Callable[[], Mapping[str, float]] = dict,
    leads: bool = True,
) -> None:
    """Take all steps that are left, with checkpoints and lines of progress.

    `tell` measures what a line of progress shows beside the loss. Only the process that `leads` tells and saves.
    """
    plan = learner.plan
    begun, first, saved, told, mean = time.monotonic(), learner.step, time.monotonic(), -math.inf, math.nan
    while learner.step < plan.steps:
        loss = loss_at(learner.step)
        learner.learn(loss, share)
        value = loss.item()
        if not math.isfinite(value):
            raise RuntimeError(
                f"{plan.name}: the loss is {value} at step {learner.step}; lower the learning rate"
            )
        mean = value if math.isnan(mean) else 0.98 * mean + 0.02 * value
        now = time.monotonic()
        last = learner.step == plan.steps
        if leads and (last or now - saved > SAVE_EVERY):
            learner.save()
            saved = now
        if leads and (last or now - told > TELL_EVERY):
            pace = (learner.step - first) / max(now - begun, 1e-9)
            figures = "".join(f", {name} {figure:.4g}" for name, figure in tell().items())
            print(
                f"{time.strftime('%H:%M:%S')} {plan.name}: step {learner.step} of {plan.steps}, "
                f"{pace:.2f} steps/s, loss {mean:.4f}{figures}",
                flush=True,
            )
            told = time.monotonic()


def to_folder(folder: Path, write: Callable[[Path], Any]) -> None:
    """Let something write a folder aside, then put it in place; a folder that is there is complete."""
    aside = aside_of(folder)
    write(aside)
    aside.rename(folder)


def aside_of(path: Path) -> Path:
    """Name where this process writes a file or folder until it is complete."""
    return path.with_name(f"{path.name}.{os.getpid()}.aside")


def remove_leftovers(folder: Path) -> None:
    """Remove what processes of this machine that have ended left aside in a folder, before anything is written."""
    for path in folder.glob("*.aside"):
        named = re.search(r"\.(\d{1,9})\.aside$", path.name)
        if named is None or _runs(int(named[1])):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def changes(old: Mapping[str, object], new: Mapping[str, object]) -> str:
    """Name what differs between old settings and new ones, with the old values."""
    return ", ".join(f"{name} {old.get(name)}" for name in new if old.get(name) != new[name])


def _runs(process: int) -> bool:
    """Whether another process of this number runs; one that ended may have had this process's number."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
