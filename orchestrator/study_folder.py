"""A study's own folder, always local: the pinned study, its inputs, its lock, log, report and Comet's archive."""

import fcntl
import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO
from urllib.parse import unquote, urlsplit

from PIL import Image

from orchestrator.budget import Spent
from orchestrator.session import Session, from_json
from search_spaces.errors import InputError, shown
from search_spaces.requests import Settings
from search_spaces.study import Study, difference
from search_spaces.study_file import NAME
from workers.atomic_files import write_file
from workers.png import encode_png

DEFAULT_ROOT = "runs"

LOOKS = 20
"""At a lock that is held, a twentieth of a second apart, before it counts as held."""


def local_root(root: str) -> Path:
    """Where a root's local part lies: the root itself, or for one on an object store `runs/<scheme>/<bucket>/…`.

    So no study there shares a folder with one of this machine, or of another bucket.
    """
    if "://" not in root:
        return Path(root)
    address = urlsplit(root)
    if address.scheme == "file":
        return Path(unquote(address.path))
    steps = [step for step in f"{address.netloc}{address.path}".split("/") if step]
    return Path(DEFAULT_ROOT, address.scheme, *(step.replace("..", "%2E%2E") for step in steps))


class StudyFolder:
    """`studies/<study>` under a root."""

    def __init__(self, root: str, study: str) -> None:
        self.name = study
        self.path = local_root(root) / "studies" / study
        self.comet = self.path / "comet"

    @property
    def log(self) -> Path:
        """The study's log."""
        return self.path / "run.log"

    @property
    def study_file(self) -> Path:
        """The study file as it was last run."""
        return self.path / "study.yaml"

    @property
    def optuna(self) -> Path:
        """What belongs to the projection into an Optuna storage: thumbnails, and a journal by default."""
        return self.path / "optuna"

    @property
    def report(self) -> Path:
        """The report as text."""
        return self.path / "report.txt"

    @property
    def trials(self) -> Path:
        """The trials as a table."""
        return self.path / "trials.csv"

    @property
    def contact_sheet(self) -> Path:
        """The contact sheet."""
        return self.path / "contact-sheet.png"

    def pinned(self) -> Study | None:
        """The study as it was pinned; None where there is none yet. Raises InputError where it cannot be read."""
        path = self.path / "study.json"
        if not path.exists():
            return None
        try:
            study = Study.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} cannot be read as a pinned study of this version ({type(error).__name__}); "
                "move the folder away or give the study another name"
            ) from None
        if not is_study_name(study.name):  # which becomes a path
            raise InputError(f"{path}: {shown(study.name)} is not the name of a study; move the folder away")
        return study

    def check_continues(self, study: Study, source: str) -> None:
        """Raise InputError, naming the difference, where the folder belongs to another study."""
        pinned = self.pinned()
        changed = difference(pinned, study) if pinned else None
        if changed:
            raise InputError(
                f"{source}: the folder {self.path} belongs to another study of this name; {changed}; "
                "give this one another name under 'study', or another --root"
            )

    def pin(self, study: Study, study_file: str, inputs: Mapping[str, Image.Image]) -> None:
        """Write the pinned study, the study file's text and the input images, each whole or not at all."""
        (self.path / "inputs").mkdir(parents=True, exist_ok=True)
        for name, image in inputs.items():
            write_file(self.path / "inputs" / f"{name}.png", encode_png(image))
        write_file(self.study_file, study_file.encode())
        write_file(self.path / "study.json", study.model_dump_json(indent=2).encode())

    def inputs(self, names: Iterable[str]) -> dict[str, bytes]:
        """The pinned input images and masks of some pixel hashes, as PNG. Raises InputError where one is gone."""
        paths = {name: self.path / "inputs" / f"{name}.png" for name in names}
        for path in paths.values():
            if not path.is_file():
                raise InputError(f"the input image {path} is gone, without which nothing can be said of it")
        return {name: path.read_bytes() for name, path in paths.items()}

    def spent(self) -> Spent:
        """What the study has used up so far; nothing where that cannot be read."""
        try:
            return Spent(**json.loads((self.path / "spent.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError):
            return Spent()

    def keep_spent(self, spent: Spent) -> None:
        """Write what the study has used up, whole or not at all."""
        write_file(self.path / "spent.json", json.dumps(asdict(spent)).encode())

    def session(self) -> Session | None:
        """The latest session; one that is marked as running and has no living owner was cut off.

        None where it was not written down, as before it was, or cannot be read.
        """
        try:
            found = from_json((self.path / "session.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return replace(found, ended="cut off") if found.ended == "running" and not self.owner else found

    def keep_session(self, session: Session) -> None:
        """Write down how the latest session goes or ended, whole or not at all."""
        write_file(self.path / "session.json", session.to_json())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the study's lock; the system frees it with the process, however that ends.

        Raises InputError, naming the owner, where another run holds it, also one on another host where the
        folder's filesystem is shared and has locks.
        """
        with self._held("lock", "run", "wait for it, or give this one another name"):
            yield

    @contextmanager
    def told_to_comet(self) -> Iterator[None]:
        """Be the only one that tells Comet of the study, as `locked`. Raises InputError, naming who does."""
        with self._held("comet.lock", "told to Comet", "wait for its end"):
            yield

    @contextmanager
    def _held(self, name: str, deed: str, advice: str) -> Iterator[None]:
        """Hold a lock. Raises InputError, naming who does the deed instead, with the advice."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / name).open("a+") as lock:
            if not self._take(lock):
                lock.seek(0)
                owner = lock.read().strip() or "another process"
                raise InputError(f"the study in {self.path} is being {deed} by {owner}; {advice}")
            lock.truncate(0)
            since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            owner = f"process {os.getpid()} on {socket.gethostname()} since {since}"
            try:
                os.write(
                    lock.fileno(), owner.encode()
                )  # nothing stays behind to be written when it is closed
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.path / name)) from None
            yield

    def _take(self, lock: TextIO) -> bool:
        """Whether the lock could be had: those who only look whether it is held give it back in a moment.

        A lock that was removed with its folder meanwhile counts as held.
        """
        for _ in range(LOOKS):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05)
            except OSError as error:
                raise InputError(
                    f"{self.path} lies on a filesystem without locks ({error.strerror}); give a --root on another"
                ) from None
            else:
                return os.fstat(lock.fileno()).st_nlink > 0
        return False

    @property
    def is_being_run(self) -> bool:
        """Whether a run holds the study's lock."""
        return self.owner is not None

    @property
    def owner(self) -> str | None:
        """Who runs the study, as 'process … on … since …'; None where nobody does, or whoever did is dead."""
        try:
            with (self.path / "lock").open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return lock.read().strip() or "another process"
        except OSError:
            return None
        return None

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Send this package's log records to the study's log."""
        handler = _Log(self.log, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger = logging.getLogger("orchestrator")
        level, propagate = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
            handler.close()


def is_study_name(name: str) -> bool:
    """Whether a text may be a study's name, and so that of a folder; a catalog of others' may have any text there."""
    return re.fullmatch(NAME, name) is not None


def named_folder(study: str, root: str) -> StudyFolder:
    """A named study's folder. Raises InputError for what cannot be a name, such as `..`."""
    if not is_study_name(study):
        raise InputError(f"{study!r} is not the name of a study; it is what stands under 'study' in its file")
    return StudyFolder(root, study)


def as_filed(study: str, root: str) -> Callable[[Settings], Settings]:
    """What puts a named study's swept settings under its file's own values; leaves them where that is gone."""
    with suppress(InputError):
        pinned = named_folder(study, root).pinned()
        if pinned is not None:
            return pinned.judge.as_filed
    return dict


class _Log(logging.FileHandler):
    """A log that stops nothing and says nothing where it cannot be written, as on a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name is logging's
        """Let it pass."""

    def close(self) -> None:
        """Close it, whether or not its last lines could be written."""
        with suppress(OSError):
            super().close()
