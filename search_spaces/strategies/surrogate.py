"""What outcomes tell of settings beside those that had them: a Gaussian process over settings and instances.

A score is modelled as level + f(settings) + h(settings) + g(instance) + r(settings, instance) + error. Nearby
settings have similar f, and similar r on one instance: so neighbours share what one of them was told, and the luck
of an instance is not taken for theirs. h is what a setting has for itself: before settings are judged twice nobody
can tell it from the error, and the prior gives it its part, so that none is written off for dull neighbours.
f and r have product kernels over the settings' names, each Matérn's with ν = 3/2 and a length of its own; lengths
and variances are those of the largest posterior density (Rasmussen and Williams, "Gaussian Processes for Machine
Learning", MIT Press 2006, chapters 4 and 5). Where neighbours tell nothing, lengths come out short, and a setting's
value is its own mean, drawn towards all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.requests import Settings

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

MOST_FITTED = 256
"""Outcomes that the kernels are fitted to at most, a random sample of all."""

ITERATIONS = 20
"""Of L-BFGS in one fit, which begins where the last one ended."""

DRAWS = 256
"""Joint draws of the settings' values, by which expected maxima are reckoned."""

PRIOR = {"length": 0.5, "shorter": 0.4, "f": 0.7, "h": 0.3, "r": 0.5, "g": 0.3, "error": 0.3, "look": 0.3}
"""Medians of the prior, each logarithm normal with a standard deviation of 1.

Lengths of f as shares of a ladder, r's as shares of f's; the standard deviations of f, h, r, g and error as shares of
that of all outcomes, and so what a look errs in beside them.
"""


@dataclass(frozen=True)
class Outcomes:
    """Scores of pairs. `settings` are places in a surrogate's list, `looks` tells which are forecasts from looks."""

    settings: Ints
    instances: Ints
    scores: Floats
    looks: Flags

    def some(self, which: Ints) -> "Outcomes":
        """Those at some positions."""
        return Outcomes(self.settings[which], self.instances[which], self.scores[which], self.looks[which])


class Surrogate:
    """The process over some settings. It remembers its last fit, to begin the next one there.

    One over more settings begins at the fit of one over fewer, its `forerunner`.
    """

    def __init__(self, settings: Sequence[Settings], forerunner: "Surrogate | None" = None) -> None:
        self._points, self._ordered = coordinates(settings)
        names = len(self._ordered)
        medians = list(PRIOR.values())
        self._prior = np.log([*[medians[0]] * names, *medians[1:]])
        self._logs, self._scale = self._prior, 1.0
        if forerunner is not None and len(forerunner._logs) == len(
            self._prior
        ):  # else a name has come to vary
            self._logs = forerunner._logs
        self.foretells = 0.0
        """How well each of the outcomes last fitted to was foretold by the others: Pearson's correlation."""

    def values(self, known: Outcomes, of: Ints, refit: bool = True) -> tuple[Floats, Floats]:
        """The mean and the covariance of level + f + h of some settings, given at least one outcome of any.

        Without `refit` lengths and variances stay as they were last fitted.
        """
        from scipy.linalg import (
            solve_triangular,
        )  # half a second, which a study without races need not wait for

        centre, scale = float(known.scores.mean()), float(known.scores.std()) or 1.0
        known = Outcomes(known.settings, known.instances, (known.scores - centre) / scale, known.looks)
        self._scale = scale
        if refit:
            self._fit(known)
        covariance = _Covariance(known, self._distances(known.settings, known.settings))
        root = np.asarray(np.linalg.cholesky(LEVEL + sum(covariance.parts(self._logs))), np.float64)
        if refit:
            self.foretells = _foretold(root, known.scores)
        seen = solve_triangular(root, self._alike(known.settings, of), lower=True)
        mean = seen.T @ solve_triangular(root, known.scores, lower=True)
        return centre + scale * mean, scale**2 * (self._alike(of, of) - seen.T @ seen)

    def unsure(self, instances: int) -> float:
        """The standard error of the difference of two means over so many instances, in points, as last fitted."""
        names = len(self._ordered)
        r, error = np.exp(2 * self._logs[[names + 3, names + 5]])
        return self._scale * math.sqrt(2 * (r + error) / instances)

    def _fit(self, known: Outcomes) -> None:
        """Climb to the largest posterior density of lengths and variances."""
        from scipy.optimize import minimize

        if len(known.scores) > MOST_FITTED:
            chosen = np.random.default_rng(0).permutation(len(known.scores))[:MOST_FITTED]
            known = known.some(np.sort(chosen))
        covariance = _Covariance(known, self._distances(known.settings, known.settings))

        def loss(logs: Floats) -> tuple[float, Floats]:
            value, slope = covariance.loss(logs)
            away = logs - self._prior
            return value + 0.5 * float(away @ away), slope + away

        bounds = [(median - 4, median + 4) for median in self._prior]
        found = minimize(
            loss, self._logs, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": ITERATIONS}
        )
        self._logs = np.asarray(found.x, float)

    def _distances(self, first: Ints, second: Ints) -> Floats:
        """(names, first, second): along ladders, and 1 between unlike values that have no order."""
        apart = np.abs(self._points[:, first, None] - self._points[:, None, second])
        return np.where(self._ordered[:, None, None], apart, apart > 0)

    def _alike(self, first: Ints, second: Ints) -> Floats:
        """The covariance of level + f + h between settings."""
        names = len(self._ordered)
        alike = matern(self._distances(first, second), np.exp(self._logs[:names]))
        f, h = np.exp(2 * self._logs[names + 1 : names + 3])
        covariance: Floats = LEVEL + f * alike + h * (first[:, None] == second)
        return covariance


LEVEL = 1.0
"""The variance of the level, in that of all outcomes."""


def _foretold(root: Floats, scores: Floats) -> float:
    """The correlation of scores with what all others let expect of each, `root` being their covariance's.

    By the closed form of leaving one out (Rasmussen and Williams, equation 5.12).
    """
    from scipy.linalg import cho_solve

    inverse = cho_solve((root, True), np.eye(len(scores)))
    errors = inverse @ scores / np.diag(inverse)
    spread = float(np.std(scores) * np.std(scores - errors))
    return float(np.cov(scores, scores - errors, bias=True)[0, 1]) / spread if spread > 1e-12 else 0.0


class _Covariance:
    """The covariance of some outcomes."""

    def __init__(self, known: Outcomes, distances: Floats) -> None:
        self._scores, self._distances, self._names = known.scores, distances, len(distances)
        self._twin = (known.settings[:, None] == known.settings).astype(float)
        self._same = (known.instances[:, None] == known.instances).astype(float)
        self._looks, self._one = np.diag(known.looks.astype(float)), np.eye(len(known.scores))

    def parts(self, logs: Floats) -> list[Floats]:
        """Those of f, h, r, g, error and looks, to be added up; the level comes on top."""
        lengths = self._lengths(logs)
        f, r = (matern(self._distances, each) for each in lengths)
        shapes = (f, self._twin, r * self._same, self._same, self._one, self._looks)
        scales = np.exp(2 * logs[self._names + 1 :])
        return [scale * shape for scale, shape in zip(scales, shapes, strict=True)]

    def loss(self, logs: Floats) -> tuple[float, Floats]:
        """The negative logarithm of the likelihood, but for a constant, and its gradient."""
        from scipy.linalg import cho_solve

        parts = self.parts(logs)
        root = np.linalg.cholesky(LEVEL + sum(parts))
        weights = cho_solve((root, True), self._scores)
        value = 0.5 * float(self._scores @ weights) + float(np.log(np.diag(root)).sum())
        pull = 0.5 * (cho_solve((root, True), self._one) - np.outer(weights, weights))
        by_f, by_r = (
            slopes(self._distances, lengths, pull * part)
            for lengths, part in zip(self._lengths(logs), (parts[0], parts[2]), strict=True)
        )
        by_scale = [2 * float((pull * part).sum()) for part in parts]
        return value, np.array([*(by_f + by_r), by_r.sum(), *by_scale])

    def _lengths(self, logs: Floats) -> tuple[Floats, Floats]:
        """Of f and of r."""
        lengths = np.exp(logs[: self._names])
        return lengths, lengths * math.exp(logs[self._names])


def coordinates(settings: Sequence[Settings]) -> tuple[Floats, Flags]:
    """Where settings lie, (names, settings), and which of the names are ordered; names with one value are left out.

    Where every value of a name is a number, it is its place on the ladder of all those values, from 0 to 1; of any
    other name a number that tells values apart.
    """
    rows, ordered = list[list[float]](), list[bool]()
    for name in dict.fromkeys(name for each in settings for name in each):
        values: list[Any] = [each.get(name) for each in settings]
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        distinct = sorted(set(values)) if numeric else list(dict.fromkeys(values))
        if len(distinct) > 1:
            places = {value: place / (len(distinct) - 1) for place, value in enumerate(distinct)}
            rows.append([places[value] for value in values])
            ordered.append(numeric)
    return np.array(rows, float).reshape(len(rows), len(settings)), np.array(ordered, bool)


def matern(distances: Floats, lengths: Floats) -> Floats:
    """The product over names of (1 + r) e⁻ʳ, r = √3 · distance / length; `distances` are (names, …)."""
    product, total = np.ones(distances.shape[1:]), np.zeros(distances.shape[1:])
    for distance, length in zip(distances, lengths, strict=True):
        ratio = distance * (math.sqrt(3) / length)
        product *= 1 + ratio
        total += ratio
    return product * np.exp(-total)


def slopes(distances: Floats, lengths: Floats, weights: Floats) -> Floats:
    """Of the logarithm of `matern` by each length's logarithm, the sum by weights of the distances' shape."""
    found = []
    for distance, length in zip(distances, lengths, strict=True):
        ratio = distance * (math.sqrt(3) / length)
        found.append(float((ratio * ratio / (1 + ratio) * weights).sum()))
    return np.array(found)


def draws(mean: Floats, covariance: Floats) -> Floats:
    """(draws, settings): the same seeded ones every time."""
    count = len(mean)
    small = 1e-9 * float(np.trace(covariance)) / count + 1e-12
    while True:
        try:
            root = np.linalg.cholesky(covariance + small * np.eye(count))
            break
        except np.linalg.LinAlgError:
            small *= 100  # as far as rounding has left it without a root
    normal = np.random.default_rng(0).standard_normal((DRAWS, count))
    return mean + normal @ root.T


def worth_keeping(values: Floats, loss: float, least: int, most: int) -> list[int]:
    """The settings to leave in a race, as many as lose no more than `loss` of the expected best.

    `values` are joint draws (draws, settings). Each is the one that adds most to the expected maximum of those
    before it, so of near twins the second adds nothing. At least `least` and at most `most`, if there are so many.
    """
    best = values.max(axis=1).mean()
    held = np.full(len(values), values.min() - 1)
    left, kept = np.arange(values.shape[1]), list[int]()
    while len(left) and len(kept) < most and (len(kept) < least or best - held.mean() > loss):
        gains = np.maximum(values[:, left] - held[:, None], 0).mean(axis=0)
        chosen = int(left[gains.argmax()])
        kept.append(chosen)
        held = np.maximum(held, values[:, chosen])
        left = left[left != chosen]
    return kept
