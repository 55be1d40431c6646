"""The loop: ask the strategy, work in the pool, keep in the catalog, report to the strategy."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orchestrator.catalog import Catalog, Judged, Unscored
from orchestrator.pool import Done, Pool
from orchestrator.tracking import TrackedImage, TrackedTrial, Tracker
from search_spaces.requests import Failed, ImageRequest, Outcome, Scored, Settings, Trial
from search_spaces.space import guidance_is_on
from search_spaces.strategies import Assignment, PastTrial, Report, Strategy
from search_spaces.study import Study

FLUSH_ROWS = 64
FLUSH_SECONDS = 0.5
WAIT_SECONDS = 0.2


@dataclass
class Progress:
    """How far a study is. `images` counts judged instances of all sessions, `total` is None where unknown."""

    total: int | None = None
    images: int = 0
    generated: int = 0
    reused: int = 0
    infeasible: int = 0
    lost: int = 0
    unet_calls: int = 0
    rows_per_second: float | None = None  # UNet rows, from the first result to the last
    best: Settings | None = None
    best_score: float | None = None
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
) -> Progress:
    """Run a study to its end, or until `stopping` says so: then nothing new is begun, what runs is kept.

    The strategy hears of an outcome only after `catalog.write` has returned for it.
    """
    return _Sweep(study, strategy, pool, catalog, tracker, past, total, clock).run(watch, stopping)


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
    ) -> None:
        self._study, self._strategy, self._pool = study, strategy, pool
        self._catalog, self._tracker, self._clock = catalog, tracker, clock
        self._instances = study.instances
        self._waiting: dict[str, list[tuple[Assignment, ImageRequest]]] = {}
        self._done: list[Done] = []
        self._judged: list[Judged] = []
        self._flushed_at = clock()
        self._progress = Progress(total)
        self._scores: dict[int, dict[int, float]] = {}
        self._first_result: float | None = None
        self._rows = 0
        for trial in past:
            for instance, outcome in trial.outcomes.items():
                if instance < len(self._instances):
                    self._count(Trial(trial.number, trial.settings), instance, outcome)

    def run(self, watch: Callable[[Progress], None], stopping: Callable[[], bool]) -> Progress:
        stopped = False
        while True:
            if not stopped and stopping():
                stopped = True
                self._pool.cancel(list(self._waiting))
            room = self._pool.free
            dealt = [] if stopped else self._strategy.ask(room)
            self._place(dealt)
            answered_only = bool(dealt) and not self._pool.outstanding
            self._take(self._pool.next_done(0.0 if answered_only else WAIT_SECONDS))
            if self._flush_is_due(idle=not self._pool.outstanding):
                self._flush()
            watch(self._progress)
            exhausted = stopped or (room > 0 and not dealt)  # with no room, nothing can be dealt yet
            if exhausted and not self._pool.outstanding and not self._judged and not self._done:
                return self._progress

    def _place(self, dealt: Sequence[Assignment]) -> None:
        """Answer assignments from the catalog where it can, queue the others."""
        to_make: list[ImageRequest] = []
        for assignment in dealt:
            request = self._study.request(assignment.trial.settings, self._instances[assignment.instance])
            if request.image_id in self._waiting:
                self._waiting[request.image_id].append((assignment, request))
                continue
            known = self._catalog.find(request)
            if isinstance(known, Scored | Failed):
                self._progress.reused += 1
                self._judged.append(Judged(assignment.trial, assignment.instance, request, known))
                continue
            self._waiting[request.image_id] = [(assignment, request)]
            if isinstance(known, Unscored):
                self._progress.reused += 1
                self._pool.score([(request, known.picture)])
            else:
                to_make.append(request)
        self._pool.submit(to_make)

    def _take(self, finished: Sequence[Done]) -> None:
        """Results join the trials that wait for them; a result nobody waits for any more is kept all the same."""
        self._measure(finished)
        for done in finished:
            self._done.append(done)
            self._progress.generated += done.picture is not None
            self._progress.unet_calls += done.provenance.unet_calls or 0
            for note in done.notes:
                if note not in self._progress.notes:
                    self._progress.notes.append(note)
            for assignment, request in self._waiting.pop(done.request.image_id, ()):
                self._judged.append(Judged(assignment.trial, assignment.instance, request, done.outcome))

    def _measure(self, finished: Sequence[Done]) -> None:
        """Rows per second since the first result; that one itself took the loading of the model along."""
        if not finished:
            return
        if self._first_result is None:
            self._first_result = self._clock()
            return
        for done in finished:
            guided = guidance_is_on(done.request.settings, self._study.model)
            self._rows += (done.provenance.unet_calls or 0) * (2 if guided else 1)
        self._progress.rows_per_second = self._rows / max(1e-9, self._clock() - self._first_result)

    def _flush_is_due(self, idle: bool) -> bool:
        rows = len(self._done) + len(self._judged)
        return rows > 0 and (idle or rows >= FLUSH_ROWS or self._clock() - self._flushed_at >= FLUSH_SECONDS)

    def _flush(self) -> None:
        """Make results durable, then tell the strategy, then the tracker."""
        done, self._done = self._done, []
        judged, self._judged = self._judged, []
        self._catalog.write(done, judged)
        self._flushed_at = self._clock()
        finished = [trial for j in judged if (trial := self._count(j.trial, j.instance, j.outcome))]
        dropped = self._strategy.report([Report(j.trial.number, j.instance, j.outcome) for j in judged])
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
                )
                for j in judged
                if isinstance(j.outcome, Scored)
            ]
        )
        self._tracker.trials(finished)

    def _drop(self, trials: set[int]) -> None:
        """Take the remaining work of trials out of the queue, except what another trial waits for."""
        if not trials:
            return
        unwanted = []
        for image_id, waiting in list(self._waiting.items()):
            kept = [pair for pair in waiting if pair[0].trial.number not in trials]
            if kept:
                self._waiting[image_id] = kept
            else:
                del self._waiting[image_id]
                unwanted.append(image_id)
        self._pool.cancel(unwanted)

    def _count(self, trial: Trial, instance: int, outcome: Outcome) -> TrackedTrial | None:
        """Bring the progress up to date with one judged instance; the trial, where that completes it."""
        progress = self._progress
        progress.images += 1
        if isinstance(outcome, Failed):
            progress.infeasible += outcome.kind == "infeasible"
            progress.lost += outcome.kind == "lost"
            return None
        assert isinstance(outcome, Scored)
        scores = self._scores.setdefault(trial.number, {})
        scores[instance] = outcome.scores[self._study.objective]
        if len(scores) < len(self._instances):
            return None
        mean = math.fsum(scores.values()) / len(scores)
        if progress.best_score is None or mean > progress.best_score:
            progress.best, progress.best_score = trial.settings, mean
        return TrackedTrial(trial.number, trial.settings, mean)
