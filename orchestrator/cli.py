"""The command `latentsweep`: a thin layer over `orchestrator.api`."""

import argparse
import json
import os
import shlex
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from orchestrator import stopping
from orchestrator.console import Console, as_source, harmless, print_in_any_encoding
from search_spaces import study_file
from search_spaces.errors import InputError, utf8
from workers.atomic_files import write_file

if TYPE_CHECKING:
    from orchestrator.api import CometStatus, Shown
    from orchestrator.ray_jobs import Job, JobServer
    from search_spaces.estimates import Estimate

EXIT_CODES = (
    "exit codes: 0 done, 1 internal error, 2 your input, 3 ended by a budget, with failed images or a damaged "
    "catalog, 4 a disk or object store failed, 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by a terminal that closed"
)

MENDED = "what was stored is kept, mend it and run the same again"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the result is the exit code."""
    print_in_any_encoding()
    options = _parser().parse_args(arguments)
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # their advice is for programmers
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    errors = Console(stderr=True)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        with stopping.stoppable():
            _check_texts(options)
            code = command(options)
            sys.stdout.flush()
    except InputError as error:
        errors.print(f"latentsweep: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt as error:
        after = "; the same command goes on where it was" if options.goes_on else ""
        errors.print(f"latentsweep: {stopping.told(error)}{after}", highlight=False, soft_wrap=True)
        return stopping.exit_code(stopping.stopped_by(error))
    except BrokenPipeError:  # who reads our output has had enough, as with `| head`
        _discard_output()
        return 0
    except OSError as error:
        from orchestrator.catalog.patient import StorageError, reason

        problem = str(error) if isinstance(error, StorageError) else f"{reason(error)}; {MENDED}"
        errors.print(f"latentsweep: {problem}", markup=False, highlight=False, soft_wrap=True)
        return 4
    except Exception as error:  # noqa: BLE001  # the last line of defence: a sentence, and the traceback on request
        kind = type(error).__name__
        errors.print(f"latentsweep: {kind}: {error}", markup=False, highlight=False, soft_wrap=True)
        if options.traceback:
            traceback.print_exc()
        else:
            errors.print("latentsweep: what was stored is kept; --traceback shows where it happened")
        return 1
    return code


def _check_texts(options: argparse.Namespace) -> None:
    """Raise InputError for an argument that is no text; the name of a file may be any bytes."""
    for name, value in vars(options).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                utf8(text, name)


class _Console(Console):
    """Goes on in silence where nobody reads its output any more."""

    def on_broken_pipe(self) -> None:
        """Print no more."""
        self.quiet = True
        _discard_output()


def _discard_output() -> None:
    """Send what is still buffered nowhere, so that the interpreter's end does not trip over it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="latentsweep",
        description="Find the settings that make a diffusion model draw what the prompt says.",
        epilog=EXIT_CODES,
    )
    parser.set_defaults(goes_on=False)
    parser.add_argument("--traceback", action="store_true", help="show where an internal error happened")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a study, or go on with it", epilog=EXIT_CODES)
    run.add_argument("study", type=Path, metavar="STUDY.yaml")
    run.add_argument(
        "--address", help="a Ray cluster's address; by default RAY_ADDRESS or this machine alone"
    )
    _add_run_options(run)
    _add_insecure(run)
    run.add_argument(
        "--dashboard",
        nargs="?",
        const=True,
        default=False,
        type=_storage,
        metavar="STORAGE",
        help="tell the study to an Optuna storage as it runs, for optuna-dashboard: journal:PATH or a database's "
        "URL; by default a journal in the study's folder",
    )
    run.add_argument("--quiet", action="store_true", help="print the report only")
    run.set_defaults(command=_run, goes_on=True)

    submit = commands.add_parser(
        "submit", help="run a study on a cluster from afar, as a job of its job server", epilog=EXIT_CODES
    )
    submit.add_argument("study", type=Path, metavar="STUDY.yaml")
    submit.add_argument(
        "--root",
        help="where the cluster keeps catalog and studies: an absolute folder on its head, ~/… or s3://, gs:// "
        "(default ~/runs)",
    )
    submit.add_argument("--detach", action="store_true", help="do not wait for the study's end")
    _add_run_options(submit)
    submit.set_defaults(command=_submit)

    attach = commands.add_parser("attach", help="watch a study that was submitted", epilog=EXIT_CODES)
    attach.set_defaults(command=_attach)

    stop = commands.add_parser("stop", help="stop a study that was submitted; what runs is finished and kept")
    stop.add_argument("--now", action="store_true", help="do not wait for what runs")
    stop.set_defaults(command=_stop)

    fetch = commands.add_parser("fetch", help="bring a study's folder and images from a cluster")
    fetch.add_argument("--root", help="the cluster's root; by default that of the study's last job")
    fetch.add_argument(
        "--into",
        help="folder of this machine, or object store's prefix (default runs; of a study on a store, that store)",
    )
    fetch.set_defaults(command=_fetch)
    for command in (attach, stop, fetch):
        command.add_argument("study", metavar="STUDY", help="a study's name, or a job's id")
    for command in (submit, attach, stop, fetch):
        command.add_argument(
            "--address",
            help="the job server's URL; by default RAY_API_SERVER_ADDRESS or http://127.0.0.1:8265",
        )
        _add_insecure(command)

    plan = commands.add_parser("plan", help="check a study and count what it will cost, generating nothing")
    plan.add_argument("study", type=Path, metavar="STUDY.yaml")
    plan.set_defaults(command=_plan)

    report = commands.add_parser("report", help="print a study's report again, from the catalog")
    report.add_argument("study", metavar="STUDY", help="a study's name")
    report.add_argument("--x", help="setting along the contact sheet's columns")
    report.add_argument("--y", help="setting along the contact sheet's rows")
    report.add_argument("--top", type=_count, default=10, help="settings in the table (default 10)")
    report.set_defaults(command=_report)

    refine = commands.add_parser("refine", help="write a study file that looks closer around a study's best")
    refine.add_argument("study", metavar="STUDY", help="a study's name")
    refine.add_argument("--out", type=Path, metavar="FILE", help="by default STUDY-closer.yaml")
    refine.set_defaults(command=_refine)

    show = commands.add_parser("show", help="one image: its settings, or the script that draws it again")
    show.add_argument("image", metavar="IMAGE_ID", help="as in the catalog; its beginning is enough")
    show.add_argument(
        "--code", action="store_true", help="print a plain diffusers script that draws it again"
    )
    show.add_argument(
        "--png",
        type=Path,
        metavar="FILE",
        help="write the picture there, as it is stored; without it no file is written",
    )
    show.set_defaults(command=_show)

    reproduce = commands.add_parser(
        "reproduce", help="draw an image again on this machine and say how far it is from the stored one"
    )
    reproduce.add_argument("image", metavar="IMAGE_ID", help="as in the catalog; its beginning is enough")
    reproduce.add_argument("--png", type=Path, metavar="FILE", help="write what was drawn there")
    reproduce.set_defaults(command=_reproduce)

    ls = commands.add_parser("ls", help="the studies under a root, with their best and their size")
    ls.set_defaults(command=_ls)

    rm = commands.add_parser("rm", help="remove a study, and the images that no other study uses")
    rm.add_argument("study", metavar="STUDY", help="a study's name")
    rm.add_argument("--yes", action="store_true", help="do not ask")
    rm.set_defaults(command=_rm)

    diff = commands.add_parser("diff", help="how two studies differ, paired where they share instances")
    diff.add_argument("studies", nargs=2, metavar="STUDY", help="a study's name")
    diff.set_defaults(command=_diff)

    export = commands.add_parser("export", help="bring a study into another tool's format")
    export.add_argument("study", metavar="STUDY", help="a study's name")
    export.add_argument(
        "--to",
        nargs="+",
        required=True,
        metavar=("FORMAT", "PLACE"),
        help="folder, csv, parquet or hf (for Hugging Face datasets), with a path where the default does not suit; "
        "or optuna STORAGE (journal:PATH, sqlite:///study.db, postgresql://user@host/name), for optuna-dashboard",
    )
    export.add_argument(
        "--where",
        metavar="EXPR",
        help='such as "guidance_scale >= 5 and clip_score > 30"; any column of the export, and any score',
    )
    export.add_argument("--top", type=_count, metavar="N", help="only the N rows with the largest score")
    export.set_defaults(command=_export)

    score = commands.add_parser(
        "score", help="score a study's stored images again, by another CLIP or text, generating none"
    )
    score.add_argument("study", metavar="STUDY", help="a study's name")
    score.add_argument(
        "--scorer",
        metavar="CLIP_MODEL",
        help="as clip_model in a study file, or preservation_psnr; by default the study's own",
    )
    score.add_argument("--text", help="what to judge by; by default what each image was judged by")
    score.add_argument("--address", help="a Ray cluster's address")
    score.add_argument("--workers", type=_count, help="actors; by default one per GPU, or one per core")
    _add_insecure(score)
    score.set_defaults(command=_score, goes_on=True)

    catalog = commands.add_parser("catalog", help="check, compact or repair the catalog")
    acts = catalog.add_subparsers(required=True, metavar="check | compact | repair")
    for name, act, told in (
        ("check", _check, "read everything, every picture included, and say what is wrong"),
        ("compact", _compact, "merge small part files; runs may go on meanwhile"),
        ("repair", _repair, "put what is damaged aside, so that the next run makes it again"),
    ):
        upkeep = acts.add_parser(name, help=told)
        upkeep.set_defaults(command=act)
        _add_root(upkeep)

    comet = commands.add_parser("comet", help="bring a study to Comet, or say what is there")
    acts = comet.add_subparsers(required=True, metavar="sync | status | archive | publish")
    for name, act, told in (
        ("sync", _comet_sync, "send what Comet lacks of a study; goes on where it stopped"),
        ("status", _comet_status, "how many images are sent, pending or rejected, by Comet's own list"),
        ("archive", _comet_archive, "build the archive for `comet upload` from the catalog; no network"),
    ):
        view = acts.add_parser(name, help=told)
        view.add_argument("study", metavar="STUDY", help="a study's name")
        view.set_defaults(command=act, goes_on=act is _comet_sync)
        _add_root(view)

    publish = acts.add_parser(
        "publish", help="log the winners' pictures and the study file as a version of an artifact"
    )
    publish.add_argument("study", metavar="STUDY", help="a study's name")
    publish.add_argument(
        "--top", type=_count, default=3, metavar="K", help="settings whose pictures go along (default 3)"
    )
    publish.add_argument("--name", help="the artifact's; by default STUDY-winners")
    publish.add_argument(
        "--alias",
        action="append",
        metavar="ALIAS",
        help="of the version, beside Comet's own latest; may be given more than once (default best)",
    )
    publish.set_defaults(command=_comet_publish)
    _add_root(publish)

    schema = commands.add_parser("schema", help="print the study file's JSON Schema, for editors")
    schema.set_defaults(command=_schema)
    for command in (run, plan, report, refine, show, reproduce, ls, rm, diff, export, score):
        _add_root(command)
    return parser


def _add_root(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--root",
        default="runs",
        help="folder or s3://, gs:// prefix of catalog and studies (default runs)",
    )


def _add_run_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workers", type=_count, help="actors; by default one per GPU, or one per core")
    command.add_argument("--batch", type=_count, default=8, help="images per pipeline call (default 8)")
    command.add_argument("--retry-failed", action="store_true", help="try images again that machines lost")
    command.add_argument(
        "--metrics",
        nargs="?",
        const=9464,
        type=_port,
        metavar="PORT",
        help="serve images, rate, queue and failures to Prometheus, on loopback (default port 9464)",
    )


def _add_insecure(command: argparse.ArgumentParser) -> None:
    command.add_argument("--insecure", action="store_true", help="use a cluster that asks nobody for a token")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, a whole number from 1 to 65535")
    return int(text)


def _storage(text: str) -> str:
    if text.endswith((".yaml", ".yml")):  # `run --dashboard STUDY.yaml`: an option takes what follows it
        raise argparse.ArgumentTypeError(
            f"{text} is a study file, not a storage; write it before --dashboard"
        )
    return text


def _run(options: argparse.Namespace) -> int:
    from orchestrator import api
    from orchestrator.report.terminal import render_report

    console = _Console()
    result = api.run(
        options.study,
        options.root,
        address=options.address,
        workers=options.workers,
        batch=options.batch,
        retry_failed=options.retry_failed,
        console=console,
        quiet=options.quiet,
        dashboard=options.dashboard,
        insecure=options.insecure,
        metrics=options.metrics,
    )
    console.print(render_report(result.results))
    progress = result.progress
    rows: list[tuple[str, str]] = [
        (
            "images",
            f"{progress.generated} generated, {progress.reused} reused from the catalog, {progress.failed} failed"
            + (f"; {progress.looks} early looks" if progress.looks else ""),
        ),
        ("contact sheet", str(result.contact_sheet or "none: no picture yet")),
        ("catalog", result.catalog),
        ("study", str(result.folder)),
        *(("note", message) for message in result.messages),
    ]
    if result.conclusion is not None:
        rows.append(result.conclusion)
    _print_rows(console, rows)
    return result.exit_code


def _submit(options: argparse.Namespace) -> int:
    from orchestrator import api

    arguments = ["--batch", str(options.batch)]
    arguments += ["--workers", str(options.workers)] if options.workers else []
    arguments += ["--retry-failed"] if options.retry_failed else []
    arguments += ["--metrics", str(options.metrics)] if options.metrics else []
    server = api.job_server(options.address, options.insecure)
    job = api.submit(server, options.study, options.root, arguments)
    console = _Console()
    _print_rows(console, [("job", f"{job.id} on {server.address}; results in {job.root} there")])
    if options.detach:
        _print_rows(console, [("watch it", f"latentsweep attach {job.study}{_at(options)}")])
        return 0
    return _watch(server, job, options)


def _attach(options: argparse.Namespace) -> int:
    from orchestrator import api

    server = api.job_server(options.address, options.insecure)
    return _watch(server, server.newest(options.study), options)


def _watch(server: "JobServer", job: "Job", options: argparse.Namespace) -> int:
    """Show what a job prints, to its end; Ctrl-C ends the showing, not the job. Its exit code."""
    console = _Console()

    def write(text: str) -> None:
        console.print(Text(text), end="", soft_wrap=True)

    try:
        ended = server.follow(job, write)
    except KeyboardInterrupt as error:
        _print_rows(
            console,
            [
                ("goes on", f"as job {job.id}"),
                ("watch it", f"latentsweep attach {job.study}{_at(options)}"),
                ("stop it", f"latentsweep stop {job.study}{_at(options)}"),
            ],
        )
        return stopping.exit_code(stopping.stopped_by(error))
    code = 130 if ended.status == "STOPPED" else ended.exit_code
    if code is None:  # it never began
        raise InputError(f"job {ended.id} did not run: {ended.message or ended.status}")
    if code < 0:
        raise InputError(
            f"job {ended.id} was killed by signal {-code} on the cluster's head; what was acknowledged is kept, and "
            "the same submit goes on where it was"
        )
    if code in (0, 3, 130, 143):
        _print_rows(console, [("results", f"latentsweep fetch {job.study}{_at(options)}")])
    return code


def _at(options: argparse.Namespace) -> str:
    """The options that lead to the same cluster, for a command to be typed."""
    address = f" --address {options.address}" if options.address else ""
    return address + (" --insecure" if options.insecure else "")


def _stop(options: argparse.Namespace) -> int:
    from orchestrator import api

    server = api.job_server(options.address, options.insecure)
    job = server.newest(options.study)
    if job.has_ended:
        _print_rows(_Console(), [("stopped", f"job {job.id} had ended already ({job.status.lower()})")])
        return 0
    ended = server.stop(job, options.now)
    kept = "what ran was finished and kept" if not options.now else "what was acknowledged is kept"
    state = f"{kept}; the same submit goes on where it was" if ended.has_ended else "it does not end"
    _print_rows(_Console(), [("stopped" if ended.has_ended else "not stopped", f"job {ended.id}: {state}")])
    return 0 if ended.has_ended else 1


def _fetch(options: argparse.Namespace) -> int:
    from orchestrator import api

    server = api.job_server(options.address, options.insecure)
    folder, images, into = server.fetch(options.study, options.root, options.into)
    rows = [
        ("fetched", f"{images} new images of {options.study}, and its folder {folder}"),
        ("report", f"latentsweep report {options.study} --root {shlex.quote(str(into))}"),
    ]
    _print_rows(_Console(), rows)
    return 0


def _plan(options: argparse.Namespace) -> int:
    from orchestrator import api
    from orchestrator.plan import plan_lines

    _print_rows(_Console(), list(plan_lines(api.plan(options.study, options.root))))
    return 0


def _report(options: argparse.Namespace) -> int:
    from orchestrator import api
    from orchestrator.report.terminal import render_report

    console = _Console()
    found = api.results(options.study, options.root)
    console.print(render_report(found, options.top))
    try:
        told = str(
            api.write_contact_sheet(found, options.root, options.x, options.y) or "none: no picture yet"
        )
    except api.NotWrittenError as error:  # what was asked for is printed; the sheet is drawn on the way
        told = f"not written: {error}"
    _print_rows(console, [("contact sheet", told)])
    return 0


def _refine(options: argparse.Namespace) -> int:
    from orchestrator import api

    path = api.closer(options.study, options.out or f"{options.study}-closer.yaml", options.root)
    again = shlex.join(["latentsweep", "run", str(path)])
    _print_rows(_Console(), [("written", f"{path}: `{again}` looks closer")])
    return 0


def _show(options: argparse.Namespace) -> int:
    from orchestrator import api

    shown, console = api.show(options.image, options.root), _Console()
    if options.code:
        sys.stdout.write(as_source(shown.code, sys.stdout.encoding))
        sys.stdout.flush()  # first what there is to read; the file may fail
    else:
        _print_rows(console, _shown_rows(shown))
    if shown.png is None:
        if options.png is not None:
            why = shown.row["reason"] or "what is there is not what was stored"
            raise InputError(f"image {shown.row['image_id']} has no picture: {why}")
        return 0
    told = f"--png {shown.name} writes it to a file"
    if options.png is not None:
        write_file(options.png, shown.png)
        told = str(options.png)
    if not options.code:
        _print_rows(console, [("picture", told)])
    return 0


def _shown_rows(shown: "Shown") -> list[tuple[str, str]]:
    """What is known of an image: its row, where `width` is the picture's own, and its settings."""
    from orchestrator.catalog.schema import ASKED_SIZE

    facts = {
        name: value for name, value in shown.row.items() if value is not None and name != "other_settings"
    }
    settings = {ASKED_SIZE.get(name, name): value for name, value in shown.settings.items()}
    rows = [(name, str(value)) for name, value in {**facts, **settings}.items()]
    rows += [
        ("score", f"{score['value']:.6g} by {score['scorer']}" + (f" of {text!r}" if text else ""))
        for score in shown.scores
        for text in [score["text"]]
    ]
    rows += [("used by", f"{u['study']}, trial {u['trial']}, instance {u['instance']}") for u in shown.uses]
    if shown.png is None and shown.row["status"] == "ok":
        rows.append(("picture", "not what was stored; `latentsweep catalog repair` puts it aside"))
    return rows


def _reproduce(options: argparse.Namespace) -> int:
    from orchestrator import api

    found = api.reproduce(options.image, options.root)
    rows = [
        ("image", f"{found.image_id}, drawn on {found.drawn_on}, and again on {found.device}"),
        ("largest difference", f"{found.largest}/255; {found.differing:.1%} of the pixels differ"),
    ]
    _print_rows(_Console(), rows)
    if options.png is not None:
        write_file(options.png, found.picture)
    return 0


def _ls(options: argparse.Namespace) -> int:
    from orchestrator import api

    listed = api.studies(options.root)
    rows = []
    for study in listed:
        try:
            best = api.best(study.study, options.root)
        except InputError as error:  # what one folder holds hides no other study
            best = str(error)
        size = f"{study.trials:,} trials, {study.images:,} images, {study.size / 1e6:,.1f} MB"
        last = f"last {study.last:%Y-%m-%d %H:%M} UTC" if study.last else "nothing yet"
        owner = f"; being run by {study.owner}" if study.owner else ""
        rows.append((study.study, f"{size}, {last}; {best}{owner}"))
    _print_rows(_Console(), rows or [("studies", f"none under {options.root}")])
    return 0


def _rm(options: argparse.Namespace) -> int:
    from orchestrator import api

    freed = api.removal(options.study, options.root)
    what = f"{options.study}: {freed.trials:,} rows of trials, its folder, and {len(freed.images):,} images "
    what += f"({freed.size / 1e6:,.1f} MB) that no other study uses"
    if "://" in options.root:
        what += "; a run on another machine is not seen from here, and must not be under way"
    if not options.yes:
        if not sys.stdin.isatty():
            raise InputError(f"rm would remove {what}; say --yes where nobody can be asked")
        if input(f"remove {what}? [y/N] ").strip().lower() not in ("y", "yes"):
            _print_rows(_Console(), [("kept", "nothing was removed")])
            return 0
    api.remove(options.study, options.root)
    _print_rows(_Console(), [("removed", what)])
    return 0


def _diff(options: argparse.Namespace) -> int:
    from orchestrator import api
    from orchestrator.report.statistics import Nobody

    first, second = options.studies
    found = api.diff(first, second, options.root)
    rows = [(name, f"{was} → {now}") for name, was, now in found.facts]
    rows.append(("instances", f"{found.shared} shared"))
    for name, best in zip(options.studies, found.bests, strict=True):
        settings = "" if isinstance(best, Nobody) else found.wording.settings(best) or "its one setting"
        rows.append((f"best of {name}", f"none: {best.why}" if isinstance(best, Nobody) else settings))
    if found.best is not None:
        rows.append(("best − best", f"{_plus_minus(found.best)}, {second} − {first}"))
    if found.same is not None:
        rows.append(
            (
                "same settings",
                f"{_plus_minus(found.same)}, {second} − {first}, over {found.settings} settings",
            )
        )
    if found.best is None and found.same is None:
        rows.append(("scores", "not comparable: no shared instance, or another scorer"))
    _print_rows(_Console(), rows)
    return 0


def _plus_minus(found: "Estimate") -> str:
    width = "" if found.half_width is None else f" ± {found.half_width:.2g}"
    return f"{found.mean:+.3g}{width} over {found.n} shared instances"


def _export(options: argparse.Namespace) -> int:
    from orchestrator import api

    if len(options.to) > 2:
        raise InputError(f"export --to takes a format and a place, not {' '.join(options.to)}")
    form, place = (*options.to, None)[:2]
    line = api.export(options.study, form, place, options.root, options.where, options.top)
    _print_rows(_Console(), [("export", line)])
    return 0


def _score(options: argparse.Namespace) -> int:
    from orchestrator import api

    found = api.score(
        options.study,
        options.scorer,
        options.text,
        options.root,
        options.address,
        options.workers,
        insecure=options.insecure,
    )
    mean = "" if found.mean is None else f"; their mean is {found.mean:.4g}"
    rows = [
        ("scored", f"{found.scored} images by {found.scorer}, {found.known} had that score already{mean}")
    ]
    rows += [("failed", line) for line in found.failed]
    if found.stopped_by is not None:
        rows.append(("stopped", "the same command goes on where it was"))
    _print_rows(_Console(), rows)
    if found.stopped_by is not None:
        return stopping.exit_code(found.stopped_by)
    return 3 if found.failed else 0


def _check(options: argparse.Namespace) -> int:
    from orchestrator import api

    health = api.check(options.root)
    _print_rows(_Console(), list(health.summary))
    return 0 if health.is_well else 3


def _compact(options: argparse.Namespace) -> int:
    from orchestrator import api

    done = api.compact(options.root)
    _print_rows(
        _Console(), [(table, f"{files} files merged into {into}") for table, (files, into, _) in done.items()]
    )
    return 0


def _repair(options: argparse.Namespace) -> int:
    from orchestrator import api

    _print_rows(
        _Console(), [("repair", line) for line in api.repair(options.root) or ["nothing was damaged"]]
    )
    return 0


def _comet_sync(options: argparse.Namespace) -> int:
    from orchestrator import api

    console = _Console()
    status = api.comet_sync(options.study, options.root, lambda line: _print_rows(console, [("comet", line)]))
    return _print_comet(status)


def _comet_status(options: argparse.Namespace) -> int:
    from orchestrator import api

    return _print_comet(api.comet_status(options.study, options.root))


def _comet_archive(options: argparse.Namespace) -> int:
    from orchestrator import api

    _print_rows(_Console(), [("comet", api.comet_archive(options.study, options.root))])
    return 0


def _comet_publish(options: argparse.Namespace) -> int:
    from orchestrator import api

    aliases = options.alias or ("best",)
    made = api.comet_publish(options.study, options.root, options.top, options.name, aliases)
    rows = [
        (
            "artifact" if made.new else "unchanged",
            f"{made}" + ("" if made.new else ", which holds just that"),
        ),
        ("files", f"{made.files:,}, {made.size / 1e6:,.1f} MB, as Comet lists them"),
        ("aliases", ", ".join(made.aliases)),
        ("use", f"comet://{made}/PATH as an input of a study file"),
    ]
    _print_rows(_Console(), rows)
    return 0


def _print_comet(status: "CometStatus") -> int:
    rows = [
        ("experiment", status.url or "not there yet"),
        ("sent", f"{status.sent:,} of {status.total:,} images"),
        ("pending", f"{status.pending:,}"),
        ("rejected", _refused(status)),
    ]
    if status.removed:
        rows.append(("removed", f"{status.removed:,} that were there twice"))
    if status.problem:
        rows.append(("problem", f"{status.problem}; the same command goes on"))
    _print_rows(_Console(), rows)
    return 3 if status.pending or status.rejected or status.problem else 0


def _refused(status: "CometStatus") -> str:
    """How many images Comet refused, and why: each reason with its number, the first three."""
    reasons = Counter(status.rejected.values()).most_common()
    told = "; ".join(f"{count:,} × {reason}" for reason, count in reasons[:3])
    return f"{len(status.rejected):,}" + (f": {told}" if told else "") + ("; …" if len(reasons) > 3 else "")


def _schema(options: argparse.Namespace) -> int:  # noqa: ARG001
    sys.stdout.write(json.dumps(study_file.json_schema(), indent=2) + "\n")
    return 0


def _print_rows(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    """Labelled sentences in two columns; a terminal wraps them, a file gets them whole."""
    if not console.is_terminal:
        for label, sentence in rows:
            console.print(f"{label}: {sentence}", markup=False, highlight=False, soft_wrap=True)
        return
    table = Table.grid(padding=(0, 1))
    for label, sentence in rows:
        table.add_row(Text(f"{label}:", style="bold"), Text(harmless(sentence), overflow="fold"))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
