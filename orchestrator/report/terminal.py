"""The report as a terminal shows it: the winner, the best settings, what is tied, inert, missing."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.report.copies import copies_text
from orchestrator.report.results import Results, TrialResult
from orchestrator.report.standing import part_text
from orchestrator.report.statistics import (
    Nobody,
    Ranked,
    StepsVerdict,
    best,
    complete_scores,
    decimals,
    estimate_text,
    front,
    keeps_constraints,
    left_early,
    ranking,
    score_mean,
    shared_difference,
    validation,
    where_steps_stop_paying,
)
from orchestrator.report.values import Wording, plain_text, shorten, value_text
from orchestrator.session import lost_text
from search_spaces.estimates import CONFIDENCE

WIDTH = 80  # columns that every terminal has
MOST_LINES = 8  # of one kind, so that a long list does not push the winner off the screen


def render_report(results: Results, top: int = 10) -> RenderableType:
    """The report of a study for `rich.print`: reads in 80 columns and without colours.

    `top` ≥ 1 is the number of settings in the table. Texts from the study are shown literally, never as
    markup.
    """
    ranked = ranking(results)
    lines = [*_verdicts(results, ranked), *_remarks(results)]
    sentences = Table.grid(padding=(0, 1))
    for line in lines:
        label, _, sentence = line.partition(": ")
        sentences.add_row(Text(f"{label}:", style="bold"), Text(sentence))
    complete = sum(complete_scores(trial, results.instances) is not None for trial in results.trials)
    heading = Text(_heading(results, complete), style="bold")
    table = [_table(results, ranked, top)] if ranked else []
    return Group(heading, *table, *([sentences] if lines else []))


def _verdicts(results: Results, ranked: Sequence[Ranked]) -> Iterator[str]:
    if results.lost:
        yield f"lost: {lost_text(results.lost)}; `latentsweep run` makes them anew"
    part = part_text(results)
    if part:
        yield f"so far: {part}"
    winner = best(results, ranked)
    if ranked and isinstance(winner, Nobody):
        yield f"best: none{' yet' if results.is_partial else ''}: {winner.why}"
    elif ranked and len(results.objectives) > 1:
        yield _front_sentence(results)
    elif ranked:
        yield winner_sentence(results, ranked)
    if ranked:
        word = "best so far" if results.is_partial else "best"
        name = word if isinstance(winner, Ranked) else "first"
        yield from _baseline_sentence(results, ranked[0].trial, name)
        yield from _validation_sentences(results, ranked[0].trial, name)
        yield from _left_sentence(results, ranked[0].trial, name)
    verdict = where_steps_stop_paying(results)
    if verdict:
        yield steps_sentence(verdict, results.wording)


def winner_sentence(results: Results, ranked: Sequence[Ranked]) -> str:
    """Who won, by what score, and how many others cannot be told apart; `ranked` is not empty and has a best."""
    leader, others = ranked[0], ranked[1:]
    places = decimals([entry.score for entry in ranked])
    named = results.wording.settings(leader.trial.settings) or "no swept settings"
    score = f"{plain_text(results.objective)} {estimate_text(leader.score, places)}"
    word = "best so far" if results.is_partial else "best"
    claim = f"{word}: {named}: {score} over {_evidence(leader.score.n, results.instances)}"
    ties = sum(1 for entry in others if entry.tied)
    if len(results.trials) == 1:
        return f"{claim}; nothing else was tried"
    if not others:
        return f"{claim}; no other setting was judged on all of them"
    if leader.score.n == 1:
        return f"{claim}; one instance gives no interval, so nobody knows which settings tie with it"
    if ties == 0:
        return f"{claim}; no other setting ties with it"
    return f"{claim}; {_count(ties, 'other setting')} cannot be told apart from it"


def _evidence(pictures: int, instances: int, noun: str = "instance") -> str:
    """What an estimate is over; several instances of one picture are one piece of evidence."""
    told = _count(instances, noun)
    return told if pictures == instances else f"{told}, which drew {_count(pictures, 'different picture')}"


def _front_sentence(results: Results) -> str:
    """How many settings no other beats, and in what."""
    wanted = " and ".join(f"{name} ({how[:3]})" for name, how in results.objectives.items())
    return f"front: no other setting is better in {wanted} than {_count(len(front(results)), 'setting')}"


def _baseline_sentence(results: Results, leader: TrialResult, name: str) -> Iterator[str]:
    """How far the leader, called by a `name`, is ahead of the model's own settings."""
    baseline = next((trial for trial in results.trials if trial.number == results.baseline), None)
    if baseline is None:
        return
    named = results.wording.settings(baseline.settings) or "no swept settings"
    if baseline is leader:
        yield f"baseline: the model's own settings, {named}, are the {name}"
        return
    gain = shared_difference(leader, baseline)
    if gain is not None:
        yield (
            f"baseline: the model's own settings, {named}; {name} − baseline "
            f"{estimate_text(gain, decimals([gain]), signed=True)} over "
            + _evidence(gain.n, len(leader.scores.keys() & baseline.scores.keys()), "shared instance")
        )


def _validation_sentences(results: Results, leader: TrialResult, name: str) -> Iterator[str]:
    """What the best few and the baseline came to on fresh instances."""
    found = validation(results)
    places = decimals([item.score for item in found])
    for item in found:
        who = (
            f"{name} of the search"
            if item.trial is leader
            else "baseline"
            if item.trial.number == results.baseline
            else results.wording.settings(item.trial.settings)
        )
        line = f"validated: {who}: {estimate_text(item.score, places)}"
        if item.gain is not None:
            line += f", {estimate_text(item.gain, places, signed=True)} over the baseline"
        yield f"{line}, on {_count(results.fresh, 'fresh instance')}"


def _left_sentence(results: Results, leader: TrialResult, name: str) -> Iterator[str]:
    """Who left early, and whether that is certain to be right; of a search that was broken off nobody knows who."""
    left = left_early(results, leader)
    if (left.certain or left.for_budget) and results.ended in ("running", "stopped", "cut off", "unfinished"):
        yield (
            f"not in full: {_count(left.certain + left.for_budget, 'setting')}, of which {left.certain} certainly "
            f"worse than the {name} (paired interval below it)"
        )
    elif left.certain or left.for_budget:
        at_looks = f", {left.at_looks} of them at an early look" if left.at_looks else ""
        yield (
            f"left early: {left.certain} certainly worse than the {name} (paired interval below it), "
            f"{left.for_budget} for the budget's sake{at_looks}"
        )


def steps_sentence(verdict: StepsVerdict, wording: Wording) -> str:
    """Where steps stop paying: the gain of each number of steps over the one before, and the verdict."""
    gains = [value.gain for value in verdict.values if value.gain]
    places = decimals(gains)
    path = value_text(verdict.values[0].steps)
    for value in verdict.values[1:]:
        gain = estimate_text(value.gain, places, signed=True) if value.gain else ""
        path += f" → {value_text(value.steps)} ({gain})"
    if verdict.enough is None:
        end = "one instance gives no interval, so nobody knows where they stop paying"
    elif verdict.enough == verdict.values[-1].steps:
        end = f"still paying at {value_text(verdict.enough)}, the most that was tried"
    else:
        end = f"no gain beyond {value_text(verdict.enough)} is certain"
    at = f" at {wording.settings(verdict.at)}" if verdict.at else ""
    return f"steps: {path}{at}; {end}"


def _heading(results: Results, complete: int) -> str:
    tried = len(results.trials)
    if tried == 0:
        return f"study {plain_text(results.study)}: no settings were tried yet"
    judged = "none" if complete == 0 else "all" if complete == tried else str(complete)
    line = (
        f"study {plain_text(results.study)}: {_count(tried, 'setting')} tried, "
        f"{judged} judged on {_all_instances(results.instances)}"
    )
    return line if complete else f"{line}, so there is no best one yet"


@dataclass(frozen=True)
class _Column:
    """A table's column; one of words may break its lines between words, one of numbers lines up right."""

    header: str
    cells: Sequence[str]
    words: bool = False

    @property
    def least_width(self) -> int:
        """The longest piece that no line break may cut, in characters."""
        lines = [*self.header.split("\n"), *self.cells]
        pieces = [piece for line in lines for piece in (line.split() if self.words else [line])]
        return max(map(cell_len, pieces), default=0)


def _table(results: Results, ranked: Sequence[Ranked], top: int) -> Table:
    """One row per setting; a column per axis where they fit, otherwise one column that names them all."""
    shown = ranked[:top]
    ranks = _Column("", [str(entry.rank) for entry in shown])
    scores = [_score_column(results, ranked, top)]
    on_front = front(results) if len(results.objectives) > 1 else frozenset()
    marks = _Column("", [_mark(entry, on_front) for entry in shown])
    if isinstance(best(results, ranked), Nobody):
        marks = _Column("", ["" for _ in shown])
    scores = [*scores, *_other_columns(results, shown)]
    columns = [ranks, *_axis_columns(results, shown), *scores, marks]
    if sum(column.least_width + 2 for column in columns) > WIDTH:
        settings = [results.wording.settings(entry.trial.settings) for entry in shown]
        columns = [ranks, _Column("settings", settings, words=True), *scores, marks]

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "left" if column.words or column is marks else "right"
        table.add_column(Text(column.header), justify=justify, no_wrap=not column.words)
    for place, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
        table.add_row(*map(Text, cells), style="bold" if place == 0 else None)
    return table


def _axis_columns(results: Results, shown: Sequence[Ranked]) -> list[_Column]:
    columns = []
    for name in results.axes:
        settings = [entry.trial.settings for entry in shown]
        cells = [results.wording.value(name, one[name]) if name in one else "" for one in settings]
        words = any(isinstance(one.get(name), str) for one in settings)
        columns.append(_Column(_header(name), cells, words))
    return columns


def _score_column(results: Results, ranked: Sequence[Ranked], top: int) -> _Column:
    few, many = (pick(entry.score.n for entry in ranked) for pick in (min, max))
    n = f"n = {many}" if few == many else f"n = {few} to {many}"
    header = f"{plain_text(results.objective)}\n{n if many == 1 else f'± {CONFIDENCE:.0%}, {n}'}"
    places = decimals([entry.score for entry in ranked])
    return _Column(header, [estimate_text(entry.score, places) for entry in ranked[:top]])


def _header(name: str) -> str:
    """A setting's name, broken after underscores, so that a narrow column of numbers stays narrow."""
    lines = [""]
    for part in re.findall(r"[^_]*_+|[^_]+$", plain_text(name)):
        if lines[-1] and len(lines[-1] + part) > 10:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _other_columns(results: Results, shown: Sequence[Ranked]) -> list[_Column]:
    """The means of the objectives beside the first, and of what is bounded."""
    columns = []
    for name in dict.fromkeys([*results.objectives, *(bound.score for bound in results.constraints)]):
        if name != results.objective:
            means = [score_mean(entry.trial, name, results) for entry in shown]
            columns.append(_Column(_header(name), ["" if mean is None else f"{mean:.3g}" for mean in means]))
    return columns


def _mark(entry: Ranked, on_front: Collection[int]) -> str:
    if entry.trial.number in on_front:
        return "front"
    if on_front:
        return ""
    if entry.rank == 1:
        return "best"
    return "tied" if entry.tied else ""


def _remarks(results: Results) -> Iterator[str]:
    """What the table does not show: settings without a mean and why, inert and infeasible ones."""
    incomplete = [t for t in results.trials if complete_scores(t, results.instances) is None]
    failed = [trial for trial in incomplete if trial.failures]
    looked = [t for t in incomplete if not t.failures and not t.scores and t.looks]
    untouched = [t for t in incomplete if not t.failures and not t.scores and not t.looks]
    unfinished = len(incomplete) - len(failed) - len(looked) - len(untouched)
    kinds = [
        (len(failed), "with failed images"),
        (
            unfinished,
            f"on fewer than {_count(results.instances, 'instance')} (dropped early, or not finished)",
        ),
        (len(looked), "only looked at in mid-trajectory"),
        (len(untouched), "not judged at all"),
    ]
    yield from (f"copies: {sentence}" for sentence in copies_text(results))
    complete = [trial for trial in results.trials if trial not in incomplete]
    broken = [trial for trial in complete if not keeps_constraints(trial, results)]
    if broken:
        bounds = " or ".join(map(str, results.constraints))
        none = ", so that none is left to be the best" if len(broken) == len(complete) else ""
        yield f"left out: {_count(len(broken), 'setting')} for breaking {bounds}{none}"
    if results.gone:
        yield f"left out: {_count(results.gone, 'setting')} tried before, of values that the study no longer has"
    if incomplete:
        yield "no mean: " + "; ".join(f"{_count(n, 'setting')} {kind}" for n, kind in kinds if n)
    looks = [trial.looks for trial in results.trials if trial.looks]
    if looks:
        yield f"early looks: {sum(looks)} at {_count(len(looks), 'setting')}; none of them is a result"
    # a trial counts once for each of its reasons
    reasons = Counter(reason for trial in failed for reason in sorted(set(trial.failures.values())))
    yield from _first(
        "failed",
        [
            f"{shorten(plain_text(reason), 120)} ({_count(n, 'setting')})"
            for reason, n in reasons.most_common()
        ],
    )
    yield from _first("inert", [plain_text(line) for line in results.inert])
    yield from _first("cannot run", [plain_text(line) for line in results.infeasible])


def _first(label: str, lines: Sequence[str]) -> Iterator[str]:
    yield from (f"{label}: {line}" for line in lines[:MOST_LINES])
    if len(lines) > MOST_LINES:
        yield f"{label}: … and {len(lines) - MOST_LINES} more"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _all_instances(instances: int) -> str:
    return "the one instance" if instances == 1 else f"all {instances} instances"
