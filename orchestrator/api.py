"""Latentsweep from Python: plan a study, run it, read what it found.

    from orchestrator import api

    result = api.run("studies/cat-to-dragon.yaml")
    frame = api.frame("cat-to-dragon").to_pandas()

Every function takes `root`, the folder or object-store prefix that holds catalog and studies.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from PIL import Image
from rich.console import Console

from orchestrator import comet_study, resolving, stopping, wiring
from orchestrator import studies as studies_module
from orchestrator.catalog import upkeep
from orchestrator.catalog.frames import joined
from orchestrator.catalog.parquet import ParquetCatalog, past_trials, scored_count
from orchestrator.catalog.patient import Patient, reason
from orchestrator.catalog.tables import Tables
from orchestrator.catalog.upkeep import Health
from orchestrator.copied import copied, image_ids
from orchestrator.display import watching
from orchestrator.images import Reproduced, Shown, reproduce, show
from orchestrator.metrics import MeasuredCatalog, MeasuredPool, MeasuredTracker, Metrics
from orchestrator.plan import (
    Plan,
    image_count,
    judged,
    make_plan,
    of_other_searches,
    of_this_space,
    remember_rate,
    searched_images,
    surveyed,
    trial_count,
)
from orchestrator.pool import Pool
from orchestrator.report.closer import closer_study
from orchestrator.report.contact_sheet import contact_sheet
from orchestrator.report.copies import counted_once
from orchestrator.report.results import Results, TrialResult
from orchestrator.report.standing import best_text
from orchestrator.report.values import Wording
from orchestrator.rescoring import Rescored
from orchestrator.session import Ended, Extent, Session, lost_text
from orchestrator.studies import Compared, removal, remove, reused_from, studies
from orchestrator.study_folder import DEFAULT_ROOT, StudyFolder, as_filed, local_root, named_folder
from orchestrator.sweep import Progress, sweep
from orchestrator.tracking import Guarded, Tracker
from orchestrator.tracking.comet.content import CometError, DiskError
from orchestrator.tracking.comet.keys import api_key_problem
from orchestrator.tracking.comet.publish import Published
from orchestrator.tracking.comet.sync import Status as CometStatus
from search_spaces import study_file as study_files
from search_spaces.artifacts import check_alias, check_artifact_name
from search_spaces.errors import InputError, did_you_mean
from search_spaces.models import PIXEL_SCORERS
from search_spaces.requests import Failed, Scored, Settings, Value
from search_spaces.space import survey
from search_spaces.strategies import PastTrial, Strategy
from search_spaces.study import Study
from workers.atomic_files import new_file, write_file

if TYPE_CHECKING:
    from orchestrator.ray_jobs import Job, JobServer

log = logging.getLogger(__name__)

ROWS_WORTH_A_RATE = 2
"""Full batches per worker below which a run is too short to tell how fast it was."""


class NotWrittenError(OSError):
    """A file beside the results could not be written, as on a read-only disk; the text says which and why."""


@dataclass(frozen=True)
class RunResult:
    """What a run did, what the study has found so far, and where it lies.

    `disk_failed` says that everything is in the catalog, and something that was to be made of it is not on disk.
    """

    progress: Progress
    results: Results
    folder: Path
    catalog: str
    contact_sheet: Path | None
    messages: Sequence[str]
    stopped_by: int | None = None
    """The signal that ended it before its end, if one did."""
    disk_failed: bool = False

    @property
    def stopped(self) -> bool:
        """Whether the user ended it."""
        return self.stopped_by is not None

    @property
    def was_complete(self) -> bool:
        """Whether earlier runs had done everything already, failed images included: this one had nothing to do."""
        progress = self.progress
        did = progress.generated or progress.reused or progress.failed > progress.failed_before
        return progress.ended == "finished" and not did

    @property
    def conclusion(self) -> tuple[str, str] | None:
        """What the run came to, as a label and a sentence; None where it did all that was left, and all of it well.

        A budget that ended it has its own note.
        """
        progress = self.progress
        if progress.ended == "stopped":
            return "stopped", "the same command goes on where it was"
        if progress.ended == "budget" or not (self.was_complete or progress.failed):
            return ("stopped", "nothing was left to do") if self.stopped else None
        label, told = "finished", "nothing is left to do"
        if self.was_complete:
            label, told = "complete", "the study was finished before; nothing was left to do"
        if not progress.failed:
            return label, told
        failed = f"{progress.failed:,} of {progress.images:,} images failed"
        if 0 < progress.failed_before < progress.failed:
            failed += f", {progress.failed_before:,} of them in earlier runs"
        if progress.lost:
            return (
                "not complete",
                f"{failed}; --retry-failed tries the {progress.lost:,} again that were lost",
            )
        return label, f"{told}, but {failed}"

    @property
    def exit_code(self) -> int:
        """0 done, 3 ended by a budget or with failed images, 4 a disk failed, 130 or 143 stopped by a signal."""
        if self.stopped_by is not None:
            return stopping.exit_code(self.stopped_by)
        if self.disk_failed:
            return 4
        return 3 if self.progress.failed or self.progress.ended_by else 0


def plan(study_file: str | Path, root: str = DEFAULT_ROOT) -> Plan:
    """Check a study file and everything it names, and count what it will cost; nothing is generated.

    Raises InputError with one sentence for whatever is wrong.
    """
    resolved = resolving.resolve(Path(study_file), root, _local_gpus)
    known = ParquetCatalog(Tables(root), resolved.study).image_ids
    study = resolved.study
    past = past_trials(Tables(root), study.name, needed=study.measures)
    return make_plan(study, known, past, root, resolved.warnings, partial(wiring.raced, study))


def run(
    study_file: str | Path,
    root: str = DEFAULT_ROOT,
    address: str | None = None,
    workers: int | None = None,
    batch: int = wiring.DEFAULT_BATCH,
    retry_failed: bool = False,
    console: Console | None = None,
    quiet: bool = True,
    dashboard: str | bool = False,
    insecure: bool = False,
    metrics: int | None = None,
) -> RunResult:
    """Run a study, or go on with it: what the catalog has is not generated again.

    `address` is a Ray cluster's, by default RAY_ADDRESS or a local instance; `workers` the number of actors,
    by default one per GPU, or as many as the cores carry; `batch` the images per pipeline call; `retry_failed`
    tries lost images again; `dashboard` tells the study to an Optuna storage as it runs: one that it names, or
    with True a journal in the study's folder; `insecure` takes a cluster that asks for no token; `metrics` is
    the port of this machine where the run's figures are served for Prometheus. Raises InputError before anything
    is loaded for whatever is wrong.
    """
    console = console or Console()

    def say(line: str) -> None:
        if not quiet:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    with stopping.handlers_kept():  # Ray sets its own
        from orchestrator.ray_session import cluster_gpus, machines, ray_session

    key_problem = api_key_problem(os.environ)
    if key_problem:
        say(key_problem)
    if isinstance(dashboard, str):
        wiring.check_storage(dashboard)
    connect = partial(ray_session, address, insecure, say)
    clustered = bool(address or os.environ.get("RAY_ADDRESS"))
    with ExitStack() as session:

        def gpus() -> int:  # a cluster's decide the study's dtype; by now the study file has been read
            if not clustered:
                return _local_gpus()
            session.enter_context(connect())
            return cluster_gpus()

        resolved = resolving.resolve(Path(study_file), root, gpus)
        wiring.check_comet(resolved.study, Path(study_file))
        resolving.check_writable(root)
        if clustered and not gpus():
            resolving.check_gpu(resolved.study, Path(study_file), address or os.environ["RAY_ADDRESS"])
        folder = StudyFolder(root, resolved.study.name)
        with folder.locked(), folder.logging(), stopping.requests_to_stop() as interrupted:
            folder.pin(resolved.study, resolved.text, resolved.images)
            board = wiring.make_dashboard(resolved.study, root, dashboard)
            there = machines() if clustered and not gpus() else None
            crew = wiring.crew(resolved.study, workers, gpus(), batch, there)
            cluster = wiring.Cluster(root, workers) if clustered else None
            pool = wiring.make_pool(resolved.study, resolved.images, crew, connect, cluster, say)
            figures = (
                session.enter_context(Metrics(resolved.study.name, metrics)) if metrics is not None else None
            )
            for warning in resolved.warnings:
                say(f"note: {warning}")
            where = f"{crew}, without GPU on {len(there)} machines" if there and len(there) > 1 else crew
            say(f"{resolved.study.name}: {resolved.study.model.name} on {where}; results in {folder.path}")
            log.info("run %s on %s", resolved.study.name, crew)
            if figures is not None:
                say(f"metrics: {figures.url}")
            if board is not None:
                say(f"dashboard: {board.advice}")
                board.start()
                session.callback(board.abandon)
            tracker = Guarded(wiring.make_tracker(resolved.study, root, folder, session, say))
            session.callback(tracker.abandon)
            wording = Wording(_axes([], resolved.study))
            try:
                with watching(console, resolved.study.objective, quiet, interrupted, wording) as watch:
                    progress = _sweep(
                        resolved.study, root, pool, tracker, retry_failed, watch, interrupted, say, figures
                    )
            finally:
                pool.close()
            if progress.rows_per_second and progress.generated >= ROWS_WORTH_A_RATE * crew.workers * batch:
                remember_rate(resolved.study, root, progress.rows_per_second)
            notes = [
                *progress.notes,
                *pool.notices,
                board and (board.close() or f"dashboard: {board.advice}"),
            ]
            found = results(resolved.study.name, root)
            sheet = write_contact_sheet(found, root)
            write_report(found, root)
            closing = tracker.close()  # last, so that what was written just now goes too
            if tracker.disk_failed:
                closing = f"{closing}; the images are kept, and the same command goes on once that is mended"
            messages = [message for message in (key_problem if quiet else None, *notes, closing) if message]
            for message in messages:
                log.info(message)
            return RunResult(
                progress,
                found,
                folder.path,
                catalog_place(root),
                sheet,
                messages,
                interrupted.number,
                tracker.disk_failed,
            )


def catalog_place(root: str) -> str:
    """Where a root's catalog lies, for people: a path of this machine, or an address without its options."""
    if "://" not in root or root.startswith("file://"):
        return str(local_root(root) / "catalog")
    return f"{root.partition('?')[0].rstrip('/')}/catalog"


def job_server(address: str | None = None, insecure: bool = False) -> "JobServer":
    """The job server at a URL, by default RAY_API_SERVER_ADDRESS or http://127.0.0.1:8265: its jobs can be
    followed, stopped and their results fetched. Raises InputError where it cannot be used.
    """
    from orchestrator.ray_jobs import JobServer

    return JobServer(address, insecure)


def submit(
    server: "JobServer", study_file: str | Path, root: str | None = None, arguments: Sequence[str] = ()
) -> "Job":
    """Run a study file on a cluster, as a job that outlives this process.

    `root` is an absolute folder on the cluster's head (default ~/runs) or an object store's prefix, `arguments` are
    options of `latentsweep run`. Raises InputError for what is wrong with the study file or its inputs; the rest is
    checked on the cluster.
    """
    path = Path(study_file)
    resolving.check_local_inputs(study_files.load(path), path)
    return server.submit(path, root, arguments)


def _sweep(
    study: Study,
    root: str,
    pool: Pool,
    tracker: Tracker,
    retry_failed: bool,
    watch: Callable[[Progress], None],
    interrupted: stopping.Requests,
    say: Callable[[str], None],
    figures: Metrics | None,
) -> Progress:
    """Run the loop; what was done."""
    tables = Tables(root)
    past = past_trials(tables, study.name, retry_failed, study.measures)
    found = surveyed(study)
    folder = StudyFolder(root, study.name)
    there = of_this_space(past, study, found)
    of_others = of_other_searches(there, study)
    raced = wiring.raced(study, found)
    trials = trial_count(study, found, raced)
    total = of_others + image_count(study, trials)
    extent = Extent(trials, of_others + searched_images(study, trials), study.search.strategy != "grid")
    strategy = wiring.make_strategy(study, past)
    notes: list[str] = []

    def tell(line: str) -> None:  # of a pause, which is worth a line at once and at the end
        say(line)
        log.warning(line)
        notes.append(line)

    catalog = ParquetCatalog(tables, study)
    patient = Patient(catalog, tell, interrupted)
    lost = studies_module.lost_of(tables, folder)
    if lost:
        tell(f"{lost_text(lost)}; what of it the study needs is made anew")

    def keep(ended: Ended, signal: str = "") -> None:
        session = Session(ended, extent, signal, scored_count(tables, study.name))
        patient.persist(lambda: folder.keep_session(session))

    keep("running")

    def shown(progress: Progress) -> None:
        watch(progress)
        if figures is not None:
            figures.progress(progress)

    progress = sweep(
        study,
        strategy,
        MeasuredPool(pool, figures) if figures else pool,
        MeasuredCatalog(patient, figures) if figures else patient,
        MeasuredTracker(tracker, figures) if figures else tracker,
        there,
        total,
        shown,
        interrupted,
        spent=folder.spent(),
        keep_spent=lambda spent: patient.persist(lambda: folder.keep_spent(spent)),
        validation=partial(_validation, study, tables, retry_failed) if study.search.validation else None,
    )
    signal = "" if interrupted.number is None else stopping.named(interrupted.number)
    keep(progress.ended, signal)
    progress.notes += [*notes, *tables.notices, *_reused(tables, catalog.reused, study.name)]
    if progress.ended_by:
        progress.notes.append(f"the search ended early: {progress.ended_by}")
    if found and raced and study.search.trials is None and len(raced) < len(found.candidates):
        progress.notes.append(
            f"the budget lasted for a race of {len(raced):,} of {len(found.candidates):,} settings"
        )
    asked = study.search.trials if study.search.samples else None
    if found and asked is not None and not interrupted() and len(found.candidates) < asked:
        progress.notes.append(
            f"the search ended after {len(found.candidates)} of {asked} trials: "
            "all other cells are their twins or cannot run"
        )
    return progress


def _reused(tables: Tables, image_ids: set[str], study: str) -> list[str]:
    """Which studies the images came from that this run had not to make."""
    if not image_ids:
        return []
    found = ", ".join(f"{count} from {name}" for name, count in reused_from(tables, image_ids, study).items())
    return [f"{len(image_ids)} images were there already: {found}"]


def _validation(study: Study, tables: Tables, retry_failed: bool) -> Strategy:
    """What follows the search, from what the catalog has of it by then."""
    past = past_trials(tables, study.name, retry_failed, study.measures)
    return wiring.make_validation(study, of_this_space(past, study, surveyed(study)))


def results(study: str, root: str = DEFAULT_ROOT) -> Results:
    """What a study found, from the catalog; the pinned study adds what was inert or cannot run.

    Raises InputError where the root knows no such study.
    """
    pinned, tables = named_folder(study, root).pinned(), Tables(root)
    past = past_trials(tables, study)
    if not past and pinned is None:
        known = sorted(tables.counts("trials", "study"))
        hint = did_you_mean(study, known) if known else "; it holds no study yet"
        raise InputError(f"there is no study {study!r} under {root}{hint}")
    folder = StudyFolder(root, study)
    session = folder.session() or (_unwritten(past, pinned) if pinned else None)
    return replace(
        _results(study, past, pinned, tables, session), lost=studies_module.lost_of(tables, folder)
    )


def _unwritten(past: Sequence[PastTrial], pinned: Study) -> Session | None:
    """The session of a grid that nobody wrote one down for, as before sessions were: not finished where cells lack.

    What else it would judge now, as the baseline, may be younger than its end. None where nothing can be known: how
    many settings another search judges in full is its own affair.
    """
    found = surveyed(pinned)
    if found is None or pinned.search.strategy != "grid":
        return None
    cells = {pinned.judge.candidate(one) for one in survey(pinned.space, pinned.judge).candidates}
    there = of_this_space(past, pinned, found)
    own = [trial for trial in there if pinned.judge.candidate(trial.settings) in cells]
    trials = trial_count(pinned, found)
    if judged(own, pinned) >= min(trials, len(cells)) * len(pinned.instances):
        return None
    return Session("unfinished", Extent(trials, searched_images(pinned, trials)))


def _results(
    name: str, past: Sequence[PastTrial], pinned: Study | None, tables: Tables, session: Session | None
) -> Results:
    objective = pinned.objective if pinned else _objective(past)
    instances = (
        len(pinned.instances) if pinned else 1 + max((i for t in past for i in t.outcomes), default=-1)
    )
    found = surveyed(pinned) if pinned else None
    tried = len(past)
    past = of_this_space(past, pinned, found) if pinned else past
    images = image_ids(tables, name, "search")
    numbers = {_candidate(pinned, trial.settings): trial.number for trial in past}
    fresh = len(pinned.validation_instances) if pinned else 0
    whole = Results(
        study=name,
        objective=objective,
        instances=instances,
        axes=_axes(past, pinned),
        trials=[
            TrialResult(
                trial.number,
                trial.settings,
                {
                    i: o.scores[objective]
                    for i, o in trial.outcomes.items()
                    if isinstance(o, Scored) and i < instances
                },
                {i: o.reason for i, o in trial.outcomes.items() if isinstance(o, Failed) and i < instances},
                {
                    i: image_id
                    for i, image_id in images.get(trial.number, {}).items()
                    if isinstance(trial.outcomes.get(i), Scored)  # whose picture is still there
                },
                {
                    i: o.scores[objective]
                    for i, o in trial.validation.items()
                    if isinstance(o, Scored) and i < fresh
                },
                {
                    name: {
                        i: o.scores[name]
                        for i, o in trial.outcomes.items()
                        if isinstance(o, Scored) and name in o.scores
                    }
                    for name in (pinned.measures if pinned else ())
                },
                sum(len(looks) for i, looks in trial.looks.items() if i < instances),
            )
            for trial in past
        ],
        twin_of=lambda settings: numbers.get(_candidate(pinned, settings)),
        inert=list(found.inert) if found else [],
        infeasible=list(found.infeasible) if found else [],
        baseline=numbers.get(_candidate(pinned, pinned.baseline)) if pinned else None,
        fresh=fresh,
        objectives=pinned.directions if pinned else {},
        constraints=pinned.constraints if pinned else (),
        gone=tried - len(past),
        ended=session.ended if session else None,
        extent=session.extent if session else None,
        signal=session.signal if session else "",
        has_baseline=pinned is not None and pinned.judge.obstacle(pinned.baseline) is None,
    )
    same = copied(tables, name, past, instances)
    return counted_once(whole, same, copied(tables, name, past, fresh, "validate"))


def _objective(past: Sequence[PastTrial]) -> str:
    names = (name for t in past for o in t.outcomes.values() if isinstance(o, Scored) for name in o.scores)
    return next(names, "score")


def _candidate(pinned: Study | None, settings: Settings) -> object:
    return pinned.judge.candidate(settings) if pinned else tuple(sorted(settings.items(), key=str))


def _axes(past: Sequence[PastTrial], pinned: Study | None) -> dict[str, list[Value]]:
    """Each swept setting with its values: the study file's where it lists them, else those tried, ascending."""
    axes: dict[str, list[Value]] = {}
    names = pinned.space.axes if pinned else dict.fromkeys(name for trial in past for name in trial.settings)
    for name in names:
        points = pinned.space.axes[name].points() if pinned else None
        tried = list(dict.fromkeys(trial.settings[name] for trial in past if name in trial.settings))
        if points is None:
            numeric = all(isinstance(value, int | float) for value in tried)
            axes[name] = sorted(tried, key=lambda v: v if numeric else 0)  # type: ignore[arg-type,return-value]
        else:
            axes[name] = [*points, *(value for value in tried if value not in points)]
    return axes


def write_contact_sheet(
    found: Results, root: str = DEFAULT_ROOT, x: str | None = None, y: str | None = None
) -> Path | None:
    """Draw a study's contact sheet into its folder; None where there is no picture yet.

    Raises InputError for a setting that is none of the study's, NotWrittenError where the folder cannot be written.
    """
    if not any(trial.images for trial in found.trials):
        return None
    tables, folder = Tables(root), StudyFolder(root, found.study)
    sheet = contact_sheet(found, partial(_stored_picture, tables), x, y)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        with new_file(folder.contact_sheet) as aside:
            sheet.save(aside, format="PNG")
    except OSError as error:
        why = OSError(error.errno, error.strerror or str(error), error.filename or str(folder.contact_sheet))
        raise NotWrittenError(reason(why)) from error
    return folder.contact_sheet


def _stored_picture(tables: Tables, image_id: str) -> Image.Image:
    """A picture of the catalog; a grey one, named in the log, in place of one that is damaged."""
    from workers.png import decode_png

    try:
        return decode_png(tables.png(image_id))
    except (KeyError, OSError, ValueError, SyntaxError):
        log.warning(
            "the picture %s is damaged; `latentsweep catalog repair` puts it aside, and `latentsweep run` makes "
            "it again",
            image_id,
        )
        return Image.new("RGB", (64, 64), "grey")


def write_report(found: Results, root: str = DEFAULT_ROOT) -> None:
    """Write a study's report as text, and its trials as a table (CSV), into its folder."""
    from orchestrator.report.files import report_text, trials_csv

    folder = StudyFolder(root, found.study)
    folder.path.mkdir(parents=True, exist_ok=True)
    write_file(folder.report, report_text(found).encode())
    write_file(folder.trials, trials_csv(found).encode())


def comet_sync(
    study: str, root: str = DEFAULT_ROOT, told: Callable[[str], None] = lambda _: None
) -> CometStatus:
    """Make a study's experiment in Comet agree with the catalog: what is missing there is sent, nothing twice.

    Works for a study that was run offline, half streamed or cut off, and goes on where it stopped; `told` hears
    how far it is. The result is what Comet lists afterwards. Raises InputError, also where a run or another sync
    tells Comet of the study.
    """
    from orchestrator.tracking.comet.sync import sync_in_child

    def hear(news: object) -> None:
        if isinstance(news, dict) and "waiting" in news:
            told(
                f"Comet takes no more for {news['waiting'] / 60:,.0f} min, by its quotas; this waits and goes on"
            )
        elif isinstance(news, dict):
            told(f"{news['sent']:,} of {news['total']:,} images are in Comet")

    with _for_comet(study, root) as folder:
        found = results(study, root)
        write_contact_sheet(found, root)
        write_report(found, root)
        source, log_file = comet_study.comet_source(root, study), folder.path.absolute() / "comet.log"
        with _comet_told():
            return sync_in_child(source, folder.comet, log_file, hear)


def comet_status(study: str, root: str = DEFAULT_ROOT) -> CometStatus:
    """How much of a study Comet lists, sending nothing, also while it is run or synced. Raises InputError."""
    from orchestrator.tracking.comet.sync import status_in_child

    folder = _comet_folder(study, root)
    source, log_file = comet_study.comet_source(root, study), folder.path.absolute() / "comet-status.log"
    with _comet_told():
        return status_in_child(source, folder.comet, log_file)


def comet_archive(study: str, root: str = DEFAULT_ROOT) -> str:
    """Build a study's archive for `comet upload` from the catalog; a line says where it is. Raises InputError."""
    with _for_comet(study, root) as folder:
        found = results(study, root)
        write_contact_sheet(found, root)
        write_report(found, root)
        with _comet_told():
            return wiring.make_archive(study, root, folder).close() or ""


def comet_publish(
    study: str,
    root: str = DEFAULT_ROOT,
    top: int = 3,
    name: str | None = None,
    aliases: Sequence[str] = ("best",),
) -> Published:
    """Log the best `top` settings' pictures and the study file as a version of a Comet artifact.

    The artifact is named STUDY-winners by default; Comet itself gives its newest version the alias latest. Where
    the latest version holds just that, nothing is sent and the result is that version, which then has the aliases.
    Raises InputError.
    """
    from orchestrator.tracking.comet.publish import publish_in_child
    from orchestrator.winners import publication, winners

    with _for_comet(study, root) as folder:
        pinned = folder.pinned()
        assert pinned is not None
        artifact = check_artifact_name(name if name is not None else f"{study}-winners")
        named = [check_alias(alias) for alias in dict.fromkeys(aliases)]
        pictures = winners(results(study, root), pinned, top)
        place = root if "://" in root else str(Path(root).absolute())
        source = partial(publication, place, study, pictures, artifact, named)
        with _comet_told():
            return publish_in_child(source, folder.comet, folder.path.absolute() / "comet.log")


@contextmanager
def _comet_told() -> Iterator[None]:
    """Raise what Comet has against it as InputError; a disk that fails here stays an OSError."""
    try:
        yield
    except DiskError as error:
        raise DiskError(f"comet: {error}") from None
    except CometError as error:
        raise InputError(f"comet: {error}") from None


def _comet_folder(study: str, root: str) -> StudyFolder:
    folder = named_folder(study, root)
    if folder.pinned() is None:
        results(study, root)  # says so where there is no such study
        raise InputError(f"the folder of study {study!r} is gone from {root}/studies")
    return folder


@contextmanager
def _for_comet(study: str, root: str) -> Iterator[StudyFolder]:
    """A study's folder, while nobody runs the study or tells Comet of it. Raises InputError."""
    folder = _comet_folder(study, root)
    if folder.is_being_run:
        raise InputError(f"the study in {folder.path} is being run by {folder.owner}; wait for its end")
    with folder.told_to_comet():
        yield folder


def closer(study: str, file: str | Path, root: str = DEFAULT_ROOT) -> Path:
    """Write the study file that looks closer around a study's best; the path it was written to.

    A file that holds just this is left as it is. Raises InputError where the study has no best yet, nothing lies
    closer, or the file exists already and holds something else.
    """
    found, folder, path = results(study, root), StudyFolder(root, study), Path(file)
    pinned = folder.pinned()
    if pinned is None:
        raise InputError(
            f"the folder of study {study!r} is gone from {root}/studies; only its catalog is left"
        )
    text = folder.study_file.read_text(encoding="utf-8")
    inputs = (folder.path / "inputs").absolute()
    made = closer_study(pinned, text, found, inputs, path.absolute().parent).encode()
    if not path.exists():
        write_file(path, made)
    elif not path.is_file() or path.read_bytes() != made:
        raise InputError(f"{path} exists already; name another file with --out")
    return path


def best(study: str, root: str = DEFAULT_ROOT) -> str:
    """A study's best settings and their score, or why there are none, and what they are the best of; for a line."""
    return best_text(results(study, root))


def frame(study: str, root: str = DEFAULT_ROOT, pictures: bool = True) -> pa.Table:
    """A study as one table, a row per trial and instance: settings, score (`value`) and picture (`image`).

    Where pictures have been scored by their pixels too, there is a column of that name, as `preservation_psnr`.

    Without `pictures` it has no `image`, and a large study takes little memory. Raises InputError where the root
    knows no such study.
    """
    table = joined(Tables(root), study, pictures, as_filed=as_filed(study, root))
    if not table.num_rows:
        results(study, root)  # says so where there is no such study
    return table


def export(
    study: str,
    to: str,
    place: str | None = None,
    root: str = DEFAULT_ROOT,
    where: str | None = None,
    top: int | None = None,
) -> str:
    """Bring a study into another format; the result is one line that says what is where.

    `to` is folder, csv, parquet, hf or optuna; `place` a path, or an Optuna storage. `where` is a condition on the
    rows, such as "guidance_scale >= 5 and value > 30", `top` leaves those with the largest score. Raises
    InputError for whatever is wrong.
    """
    from orchestrator import exports

    return exports.export(study, to, place, root, where, top)


def score(
    study: str,
    scorer: str | None = None,
    text: str | None = None,
    root: str = DEFAULT_ROOT,
    address: str | None = None,
    workers: int | None = None,
    batch: int = wiring.DEFAULT_BATCH,
    insecure: bool = False,
) -> Rescored:
    """Score a study's stored images again, by another CLIP or against another text; nothing is generated.

    `scorer` is named as `clip_model` in a study file, by default the study's own, or it is `preservation_psnr`,
    which reads no text. A study that names it, with that text as `score_text`, finds the scores in the catalog.
    Images stored as jpeg differ a little from what was drawn, and so do their scores. Raises InputError.
    """
    with stopping.handlers_kept():  # Ray sets its own
        from orchestrator.ray_session import cluster_gpus, machines, ray_session
    from orchestrator.rescoring import rescore
    from workers.pipelines.loading import describe_clip

    folder = named_folder(study, root)
    pinned = folder.pinned()
    if pinned is None:
        results(study, root)  # says so where there is no such study
        raise InputError(f"the folder of study {study!r} is gone from {root}/studies")
    inputs: dict[str, bytes] = {}
    if scorer is not None and scorer in PIXEL_SCORERS:
        if text is not None:
            raise InputError(f"--text: {scorer} compares pixels and reads no text; leave it out")
        if pinned.model.task != "inpainting":
            raise InputError(
                f"--scorer {scorer} compares a picture with its input image outside the mask, and the task "
                f"{pinned.model.task} of study {study!r} has no mask"
            )
        inputs = folder.inputs(
            name for item in pinned.inputs for name in (item.image, item.mask) if name is not None
        )
        pinned = pinned.model_copy(update={"scorer": PIXEL_SCORERS[scorer], "objective": scorer})
    elif scorer is not None:
        described = describe_clip(scorer, scorer, Path())
        pinned = pinned.model_copy(update={"scorer": described})
    connect = partial(ray_session, address, insecure)
    with ExitStack() as session, stopping.requests_to_stop() as interrupted:
        if address or os.environ.get("RAY_ADDRESS"):
            session.enter_context(connect())
            gpus = cluster_gpus()
            crew = wiring.crew(pinned, workers, gpus, batch, None if gpus else machines())
        else:
            crew = wiring.crew(pinned, workers, _local_gpus(), batch)
        pool = wiring.make_scoring_pool(pinned, crew, connect, inputs)
        try:
            found = rescore(Tables(root), pinned, pool, text, interrupted)
            return replace(found, stopped_by=interrupted.number)
        finally:
            pool.close()


def diff(first: str, second: str, root: str = DEFAULT_ROOT) -> Compared:
    """How two studies differ, in what they were run with and in their scores. Raises InputError."""
    found = []
    for study in (first, second):
        told, pinned = results(study, root), named_folder(study, root).pinned()
        if pinned is None:
            raise InputError(f"the folder of study {study!r} is gone from {root}/studies")
        found.append((pinned, told))
    return studies_module.diff(found[0], found[1])


def check(root: str = DEFAULT_ROOT) -> Health:
    """Read the whole catalog, every picture included, and say what is wrong with it."""
    return replace(upkeep.check(Tables(root)), lost=studies_module.lost(root))


def compact(root: str = DEFAULT_ROOT) -> dict[str, tuple[int, int, int]]:
    """Merge the catalog's small part files; table → (files, into how many, bytes). Others may go on meanwhile."""
    return upkeep.compact(Tables(root))


def repair(root: str = DEFAULT_ROOT) -> list[str]:
    """Put what is damaged in the catalog aside; a sentence for each thing done."""
    return upkeep.repair(Tables(root))


def _local_gpus() -> int:
    from workers.device import gpu_count

    return gpu_count()


__all__ = [
    "CometStatus",
    "Compared",
    "Health",
    "InputError",
    "NotWrittenError",
    "Plan",
    "Published",
    "Reproduced",
    "Rescored",
    "RunResult",
    "Shown",
    "best",
    "check",
    "closer",
    "comet_archive",
    "comet_publish",
    "comet_status",
    "comet_sync",
    "compact",
    "diff",
    "export",
    "frame",
    "job_server",
    "local_root",
    "plan",
    "removal",
    "remove",
    "repair",
    "reproduce",
    "results",
    "run",
    "score",
    "show",
    "studies",
    "submit",
    "write_contact_sheet",
    "write_report",
]
