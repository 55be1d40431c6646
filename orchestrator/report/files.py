"""A report as files: the text that a terminal shows, and a table of all trials."""

import io

from orchestrator.cells import csv_text
from orchestrator.console import Console
from orchestrator.report.results import Results
from orchestrator.report.statistics import trial_estimate
from orchestrator.report.terminal import render_report

WIDTH = 100
"""Characters of a line."""


def report_text(results: Results) -> str:
    """The report as plain text."""
    stream = io.StringIO()
    console = Console(file=stream, width=WIDTH, color_system=None, force_terminal=False)
    console.print(render_report(results))
    return stream.getvalue()


def trials_csv(results: Results) -> str:
    """One row per trial: number, settings, instances judged, failures, mean score and half its 95 % interval.

    Mean and interval are empty for a trial that is not judged on every instance.
    """
    score = results.objective
    rows: list[list[object]] = [["trial", *results.axes, "judged", "failed", score, f"{score}_half_width"]]
    for trial in results.trials:
        found = trial_estimate(trial, results.instances)
        told = [None, None] if found is None else [found.mean, found.half_width]
        settings = [trial.settings.get(name) for name in results.axes]
        rows.append([trial.number, *settings, len(trial.scores), len(trial.failures), *told])
    return csv_text(rows, lineterminator="\n")
