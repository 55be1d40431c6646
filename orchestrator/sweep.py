"""The loop: ask the strategy, work in the pool, keep in the catalog, report to the strategy."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.budget import Spent, images_left, spent_up
from orchestrator.catalog import Catalog, Judged, Unscored
from orchestrator.leading import Leading
from orchestrator.pool import Done, Pool
from orchestrator.report.statistics import Nobody
from orchestrator.session import Ended
from orchestrator.tracking import TrackedImage, TrackedTrial, Tracker
from search_spaces.objectives import GPU_SECONDS, keeps
from search_spaces.requests import Failed, ImageRequest, Looked, Outcome, Role, Scored, Settings, Trial
from search_spaces.space import guidance_is_on
from search_spaces.strategies import Assignment, PastTrial, Report, Strategy
from search_spaces.study import Study

FLUSH_ROWS = 64
FLUSH_SECONDS = 0.5
KEEP_SECONDS = 2.0
WAIT_SECONDS = 0.2


@dataclass
class Progress:
    """How far a study is. `images` counts judged instances of all sessions, `total` is None where unknown.

    `spent` is of all sessions too; `ended_by` says which budget ended the search, if one did, `ended` how this
    session has. Without a `best` so far, `no_best` says why.
    """

    total: int | None = None
    images: int = 0
    generated: int = 0
    reused: int = 0
    infeasible: int = 0
    lost: int = 0
    failed_before: int = 0  # of the failed ones, those of earlier sessions
    looks: int = 0
    unet_calls: int = 0
    spent: Spent = field(default_factory=Spent)
    ended_by: str | None = None
    ended: Ended = "running"
    rows_per_second: float | None = None  # UNet rows, from the first result to the last
    best: Settings | None = None
    best_score: float | None = None
    no_best: str = "no setting is judged in full"
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Instances without a score."""
        return self.infeasible + self.lost


def sweep(
    study: Study,
    strategy: Strategy,
    pool: Pool,
    catalog: Catalog,
    tracker: Tracker,
    past: Sequence[PastTrial] = (),
    total: int | None = None,
    watch: Callable[[Progress], None] = lambda _: None,
    stopping: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    spent: Spent | None = None,
    keep_spent: Callable[[Spent], None] = lambda _: None,
    validation: Callable[[], Strategy] | None = None,
) -> Progress:
    """Run a study to its end, or until `stopping` says so or its budget is used up.

    Then nothing new is begun, and what runs is finished and kept. `spent` is what earlier sessions used up;
    `keep_spent` is told now and then, and at the end, what it has come to. `validation` makes what follows the
    search when that has come to its end, outside its budget.
    The strategy hears of an outcome only after `catalog.write` has returned for it.
    """
    loop = _Sweep(
        study, strategy, pool, catalog, tracker, past, total, clock, spent or Spent(), keep_spent, validation
    )
    return loop.run(watch, stopping)


class _Sweep:
    def __init__(
        self,
        study: Study,
        strategy: Strategy,
        pool: Pool,
        catalog: Catalog,
        tracker: Tracker,
        past: Sequence[PastTrial],
        total: int | None,
        clock: Callable[[], float],
        spent: Spent,
        keep_spent: Callable[[Spent], None],
        validation: Callable[[], Strategy] | None,
    ) -> None:
        self._study, self._strategy, self._pool = study, strategy, pool
        self._catalog, self._tracker, self._clock = catalog, tracker, clock
        self._keep_spent, self._kept_at = keep_spent, clock()
        self._validation, self._searches = validation, True
        self._instances = {"search": study.instances, "validate": study.validation_instances}
        self._took: dict[str, float] = {}  # seconds of stored pictures that are only scored
        self._begun, self._seconds_before = clock(), spent.seconds
        self._looked: dict[str, tuple[int, float]] = {}  # UNet calls and seconds up to the latest look
        self._set_aside: dict[str, set[int]] = {}  # trials that requests which were looked at are of
        self._waiting: dict[str, list[tuple[Assignment, ImageRequest]]] = {}
        self._done: list[Done] = []
        self._judged: list[Judged] = []
        self._flushed_at = clock()
        self._progress = Progress(total, spent=spent)
        self._scores: dict[int, dict[int, Mapping[str, float]]] = {}
        self._leading = Leading(study)
        self._first_result: float | None = None
        self._rows = 0
        for trial in past:
            for instance, outcome in trial.outcomes.items():
                if instance < len(self._instances["search"]):
                    self._count(Trial(trial.number, trial.settings), instance, outcome)
            for instance, outcome in trial.validation.items():
                if instance < len(self._instances["validate"]):
                    self._count(Trial(trial.number, trial.settings), instance, outcome, "validate")
        self._progress.failed_before = self._progress.failed
        self._tell_best()

    def run(self, watch: Callable[[Progress], None], stopping: Callable[[], bool]) -> Progress:
        stopped = False
        while True:
            if not stopped and stopping():
                stopped = True
                self._pool.cancel_queued()
            room = 0 if stopped else self._room()
            idle = not (self._pool.outstanding or self._judged or self._done)
            dealt = self._strategy.ask(room) if room else []
            self._place(dealt)
            answered_only = bool(dealt) and not self._pool.outstanding
            self._take(self._pool.next_done(0.0 if answered_only else WAIT_SECONDS))
            if self._flush_is_due(idle=not self._pool.outstanding):
                self._flush()
            watch(self._progress)
            # What was under way at the question might have had consequences.
            done = idle and not dealt and (stopped or room > 0 or self._progress.ended_by is not None)
            if done and (stopped or not self._goes_on()):
                self._end(stopped)
                watch(self._progress)
                return self._progress

    def _end(self, stopped: bool) -> None:
        """Say how the session ended: one that was stopped when nothing was left to do is finished."""
        progress = self._progress
        if stopped and (self._waiting or self._strategy.ask(1) or (self._searches and self._validation)):
            progress.ended = "stopped"
        else:
            progress.ended = "budget" if progress.ended_by else "finished"
        self._tell_best()

    def _tell_best(self) -> None:
        progress, found = self._progress, self._leading.best(self._progress.ended)
        if isinstance(found, Nobody):
            progress.best, progress.best_score, progress.no_best = None, None, found.why
        else:
            progress.best, progress.best_score = found.trial.settings, found.score.mean

    def _goes_on(self) -> bool:
        """Whether a validation follows, which it begins; the search's budget is judged at its end."""
        if self._searches and self._progress.ended_by and not self._strategy.ask(1):
            self._progress.ended_by = None  # nothing was left to do
        if not self._searches or self._validation is None:
            return False
        self._searches, self._strategy = False, self._validation()
        return True

    def _room(self) -> int:
        """How many assignments may be asked for: as many as keep the pool busy and the budget lasts for."""
        progress, budget = self._progress, self._study.budget
        if not self._searches:
            return self._pool.free
        progress.spent.seconds = self._seconds_before + self._clock() - self._begun
        progress.ended_by = spent_up(budget, progress.spent)
        if progress.ended_by:
            return 0
        left = images_left(budget, progress.spent, len(self._waiting))
        return self._pool.free if left is None else min(left, self._pool.free)

    def _place(self, dealt: Sequence[Assignment]) -> None:
        """Answer assignments from the catalog where it can, queue the others."""
        to_make: list[ImageRequest] = []
        for assignment in dealt:
            instance = self._instances[assignment.role][assignment.instance]
            request = self._study.request(assignment.trial.settings, instance)
            if assignment.stop_after is not None:
                request = replace(request, stop_after=assignment.stop_after)
            if request.image_id in self._waiting:
                self._waiting[request.image_id].append((assignment, request))
                continue
            known = self._catalog.find(request)
            if isinstance(known, Scored | Failed):
                self._progress.reused += 1
                self._judged.append(_judged(assignment, request, known))
                continue
            self._waiting[request.image_id] = [(assignment, request)]
            if isinstance(known, Unscored):
                self._progress.reused += 1
                self._took[request.image_id] = known.seconds
                self._pool.score([(request, known.picture)])
            else:
                to_make.append(request)
        self._pool.submit(to_make)

    def _take(self, finished: Sequence[Done]) -> None:
        """Results join the trials that wait for them; a result nobody waits for any more is kept all the same."""
        for done in finished:
            self._done.append(done)
            self._spend(done)
            for note in done.notes:
                if note not in self._progress.notes:
                    self._progress.notes.append(note)
            outcome = self._measured(done)
            asked = self._waiting.pop(done.request.image_id, ())
            if isinstance(outcome, Looked):
                self._set_aside[done.request.image_id] = {assignment.trial.number for assignment, _ in asked}
            else:
                self._set_aside.pop(done.request.image_id, None)
            for assignment, request in asked:
                self._judged.append(_judged(assignment, request, outcome))

    def _measured(self, done: Done) -> Outcome:
        """A result's outcome, with what was measured as it was made where the study asks for that."""
        seconds = self._took.pop(done.request.image_id, done.provenance.seconds_generate)
        if not isinstance(done.outcome, Scored):
            return done.outcome
        made = {GPU_SECONDS: seconds} if GPU_SECONDS in self._study.measures else {}
        return Scored({**done.outcome.scores, **made})

    def _spend(self, done: Done) -> None:
        """Count what a result has cost since the latest look at it, and the rows per second.

        These count from the second result on: the first took the loading of the model along.
        """
        progress, image_id, made = self._progress, done.request.image_id, done.provenance
        calls, seconds = self._looked.pop(image_id, (0, 0.0))
        if isinstance(done.outcome, Looked):
            self._looked[image_id] = (made.unet_calls or 0, made.seconds_generate)
            progress.looks += 1
        new_calls = max(0, (made.unet_calls or 0) - calls)
        progress.generated += done.picture is not None
        progress.unet_calls += new_calls
        if self._searches:
            spent = progress.spent
            spent.images += done.picture is not None
            spent.unet_calls += new_calls
            spent.gpu_seconds += max(0.0, made.seconds_generate - seconds) + made.seconds_score
        if self._first_result is None:
            self._first_result = self._clock()
            return
        self._rows += new_calls * (2 if guidance_is_on(done.request.settings, self._study.model) else 1)
        progress.rows_per_second = self._rows / max(1e-9, self._clock() - self._first_result)

    def _flush_is_due(self, idle: bool) -> bool:
        rows = len(self._done) + len(self._judged)
        return rows > 0 and (idle or rows >= FLUSH_ROWS or self._clock() - self._flushed_at >= FLUSH_SECONDS)

    def _flush(self) -> None:
        """Make results durable, then tell the strategy, then the tracker."""
        done, self._done = self._done, []
        judged, self._judged = self._judged, []
        self._catalog.write(done, judged)
        self._flushed_at = self._clock()
        if self._flushed_at - self._kept_at >= KEEP_SECONDS or not self._pool.outstanding:
            self._keep_spent(self._progress.spent)
            self._kept_at = self._flushed_at
        finished = [trial for j in judged if (trial := self._count(j.trial, j.instance, j.outcome, j.role))]
        reports = [Report(j.trial.number, j.instance, j.outcome, j.role) for j in judged]
        self._tell_best()
        dropped = self._strategy.report(reports)
        self._drop(set(dropped))
        self._tracker.images(
            [
                TrackedImage(
                    j.request.image_id,
                    j.trial.number,
                    j.instance,
                    j.role,
                    j.request.settings,
                    j.outcome.scores,
                    j.request.prompt,
                )
                for j in judged
                if isinstance(j.outcome, Scored)
            ]
        )
        self._tracker.trials(finished)

    def _drop(self, trials: set[int]) -> None:
        """Take the remaining work of trials out of the queue, except what another trial waits for.

        What workers have set aside of them after a look goes too.
        """
        if not trials:
            return
        unwanted = []
        for image_id, owners in list(self._set_aside.items()):
            owners -= trials
            if not owners:
                del self._set_aside[image_id]
                if image_id not in self._waiting:
                    unwanted.append(image_id)
        for image_id, waiting in list(self._waiting.items()):
            kept = [pair for pair in waiting if pair[0].trial.number not in trials]
            if kept:
                self._waiting[image_id] = kept
            else:
                del self._waiting[image_id]
                unwanted.append(image_id)
        self._pool.cancel(unwanted)

    def _count(
        self, trial: Trial, instance: int, outcome: Outcome, role: Role = "search"
    ) -> TrackedTrial | None:
        """Bring the progress up to date with one judged instance; the trial, where that completes it."""
        progress = self._progress
        if isinstance(outcome, Looked):
            return None
        progress.images += 1
        if role == "search":
            self._leading.hear(trial, instance, outcome)
        if isinstance(outcome, Failed):
            progress.infeasible += outcome.kind == "infeasible"
            progress.lost += outcome.kind == "lost"
            return None
        if role == "validate":
            return None
        scores = self._scores.setdefault(trial.number, {})
        scores[instance] = outcome.scores
        if len(scores) < len(self._instances["search"]):
            return None
        del self._scores[trial.number]
        mean = math.fsum(each[self._study.objective] for each in scores.values()) / len(scores)
        within = keeps(self._study.constraints, list(scores.values()))
        self._leading.complete(trial, scores)
        told = tuple(scores[i][self._study.objective] for i in sorted(scores))
        return TrackedTrial(trial.number, trial.settings, mean, told, within)


def _judged(assignment: Assignment, request: ImageRequest, outcome: Outcome) -> Judged:
    return Judged(assignment.trial, assignment.instance, request, outcome, assignment.role)
