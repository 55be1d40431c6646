"""How far a study got and who is its best, in words: the same in report, contact sheet, list and live display."""

from collections.abc import Mapping

from orchestrator.report.results import Results
from orchestrator.report.statistics import Nobody, best, complete_scores, ranking
from orchestrator.session import Ended, lost_text

_ENDS: Mapping[Ended, str] = {
    "running": "it runs now",
    "budget": "ended by its budget",
    "cut off": "cut off, or run elsewhere",
    "unfinished": "not finished",
}


def part_text(results: Results) -> str | None:
    """What the results are a part of, and why no more: 5 of 6 settings judged in full, 12 of 18 images; stopped by
    Ctrl-C. None where they are of the whole study, as far as anybody knows.
    """
    if not results.is_partial or results.ended is None:
        return None
    whole = sum(complete_scores(trial, results.instances) is not None for trial in results.trials)
    images = results.drawn
    if images is None:
        images = sum(len(trial.scores.keys() | trial.failures.keys()) for trial in results.trials)
    extent, end = results.extent, _ENDS.get(results.ended, f"stopped by {results.signal}")
    if results.fresh:
        validated = sum(len(trial.validation) for trial in results.trials)
        end = f"{_count(validated, 'image')} of its validation; {end}"
    if extent is None:
        return f"{whole:,} settings judged in full, {images:,} images; {end}"
    most = "at most " if extent.at_most else ""
    return (
        f"{whole:,} of {most}{_count(extent.settings, 'setting')} judged in full, "
        f"{images:,} of {most}{_count(extent.images, 'image')}; {end}"
    )


def best_text(results: Results) -> str:
    """The best settings and their score, or why there are none, and what the results are a part of, in a line."""
    found, part = best(results, ranking(results)), part_text(results)
    if isinstance(found, Nobody):
        told = (
            f"no best settings yet: {found.why}" if results.is_partial else f"no best settings: {found.why}"
        )
    else:
        half = found.score.half_width
        score = f"{found.score.mean:.4g}" + ("" if half is None else f" ± {half:.2g}")
        named = results.wording.settings(found.trial.settings) or "no swept settings"
        word = "best so far:" if results.is_partial else "best"
        told = f"{word} {results.objective} {score}: {named}"
    failed = sum(len(trial.failures) for trial in results.trials)
    lost = lost_text(results.lost) if results.lost else None
    ends = [f"{_count(failed, 'image')} failed" if failed else None, lost, part]
    return "; ".join([told, *filter(None, ends)])


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
