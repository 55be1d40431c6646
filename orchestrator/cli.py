"""The command `latentsweep`: a thin layer over `orchestrator.api`."""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from search_spaces import study_file
from search_spaces.errors import InputError

EXIT_CODES = (
    "exit codes: 0 done, 1 internal error, 2 your input, 3 ended by a budget or with failed images, "
    "4 a disk or object store failed, 130 stopped by Ctrl-C"
)

MENDED = "what was stored is kept, mend it and run the same again"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the result is the exit code."""
    options = _parser().parse_args(arguments)
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # their advice is for programmers
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    errors = Console(stderr=True)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        code = command(options)
        sys.stdout.flush()
    except InputError as error:
        errors.print(f"latentsweep: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        errors.print("latentsweep: stopped; the same command goes on where it was")
        return 130
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
    parser.add_argument("--traceback", action="store_true", help="show where an internal error happened")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a study, or go on with it", epilog=EXIT_CODES)
    run.add_argument("study", type=Path, metavar="STUDY.yaml")
    run.add_argument(
        "--address", help="a Ray cluster's address; by default RAY_ADDRESS or this machine alone"
    )
    run.add_argument("--workers", type=_count, help="actors; by default one per GPU, or one per core")
    run.add_argument("--batch", type=_count, default=8, help="images per pipeline call (default 8)")
    run.add_argument("--retry-failed", action="store_true", help="try images again that machines lost")
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
    run.set_defaults(command=_run)

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
    show.add_argument("--png", type=Path, metavar="FILE", help="write the picture there")
    show.set_defaults(command=_show)

    export = commands.add_parser("export", help="bring a study into another tool's format")
    export.add_argument("study", metavar="STUDY", help="a study's name")
    export.add_argument(
        "--to",
        nargs=2,
        required=True,
        metavar=("FORMAT", "WHERE"),
        help="optuna STORAGE (journal:PATH, sqlite:///study.db, postgresql://user@host/name), for optuna-dashboard",
    )
    export.set_defaults(command=_export)

    schema = commands.add_parser("schema", help="print the study file's JSON Schema, for editors")
    schema.set_defaults(command=_schema)
    for command in (run, plan, report, refine, show, export):
        command.add_argument(
            "--root",
            default="runs",
            help="folder or s3://, gs:// prefix of catalog and studies (default runs)",
        )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
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
    )
    console.print(render_report(result.results))
    progress = result.progress
    rows: list[tuple[str, str]] = [
        (
            "images",
            f"{progress.generated} generated, {progress.reused} reused from the catalog, {progress.failed} failed",
        ),
        ("contact sheet", str(result.contact_sheet or "none: no picture yet")),
        ("catalog", result.catalog),
        ("study", str(result.folder)),
        *(("note", message) for message in result.messages),
    ]
    if result.was_complete:
        rows.append(("complete", "the study was finished before; nothing was left to do"))
    if result.stopped:
        rows.append(("stopped", "the same command goes on where it was"))
    _print_rows(console, rows)
    return result.exit_code


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
    sheet = api.write_contact_sheet(found, options.root, options.x, options.y)
    _print_rows(console, [("contact sheet", str(sheet or "none: no picture yet"))])
    return 0


def _refine(options: argparse.Namespace) -> int:
    from orchestrator import api

    path = api.closer(options.study, options.out or f"{options.study}-closer.yaml", options.root)
    _print_rows(_Console(), [("written", f"{path}: `latentsweep run {path}` looks closer")])
    return 0


def _show(options: argparse.Namespace) -> int:
    from orchestrator import api

    shown = api.show(options.image, options.root)
    if options.png is not None and shown.png is not None:
        options.png.write_bytes(shown.png)
    if options.code:
        sys.stdout.write(shown.code)
        return 0
    facts = {
        name: value for name, value in shown.row.items() if value is not None and name != "other_settings"
    }
    _print_rows(_Console(), [(name, str(value)) for name, value in {**facts, **shown.settings}.items()])
    return 0


def _export(options: argparse.Namespace) -> int:
    from orchestrator import api

    form, where = options.to
    _print_rows(_Console(), [("export", api.export(options.study, form, where, options.root))])
    return 0


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
        table.add_row(Text(f"{label}:", style="bold"), Text(sentence, overflow="fold"))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
