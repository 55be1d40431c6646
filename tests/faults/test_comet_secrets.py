"""The whole command with a key and a server that hangs: it ends as it would without, and the key is nowhere."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.catalog.tables import Tables
from tests.comet_recorder import API_KEY, CometRecorder, Fault

STUDIES = Path(__file__).parents[2] / "studies"

STUDY = """
study: secret
model: toyworld
inputs: [{image: cat.png, mask: cat-mask.png, prompt: a green dragon}]
seeds: 2
space: {guidance_scale: [3, 5, 7.5], num_inference_steps: [2]}
comet: {mode: %s}
"""

pytestmark = pytest.mark.faults


@pytest.fixture
def short_temporary() -> Iterator[Path]:  # Ray's sockets take no long path
    path = Path("/tmp") / f"ls{os.getpid()}"
    path.mkdir()
    yield path
    shutil.rmtree(path, ignore_errors=True)


def command(
    folder: Path, temporary: Path, recorder: CometRecorder, *words: str
) -> subprocess.CompletedProcess[str]:
    variables = {"COMET_TIMEOUT_API": "2", "COMET_TIMEOUT_HTTP": "2", "COMET_TIMEOUT_FILE_UPLOAD": "2"}
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "RAY_TMPDIR": str(temporary), "HOME": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *words],
        cwd=folder,
        env={**os.environ, **variables, **own, **recorder.environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("fault", [None, Fault("", "hang"), Fault("upload-asset", "status", 500)], ids=str)
def test_the_exit_code_is_the_sweeps_and_the_key_is_nowhere(
    fault: Fault | None, tmp_path: Path, short_temporary: Path
) -> None:
    for name in ("cat.png", "cat-mask.png"):
        shutil.copy(STUDIES / name, tmp_path / name)
    (tmp_path / "secret.yaml").write_text(STUDY % "online", encoding="utf-8")
    with CometRecorder() as recorder:
        recorder.faults += [fault] if fault else []
        ran = command(tmp_path, short_temporary, recorder, "run", "secret.yaml")
        assert ran.returncode == 0, ran.stderr
        images = len(Tables(str(tmp_path / "runs")).read("images", ["image_id"]))
        lines = [line for line in ran.stdout.splitlines() if line.startswith("note: Comet")]
        assert len(lines) == 1
        expected = "pending" if fault else f"all {images} images are in"
        assert expected in lines[0]
        recorder.faults.clear()
        recorder.stop()
        recorder.start()
        synced = command(tmp_path, short_temporary, recorder, "comet", "sync", "secret")
        assert synced.returncode == 0, synced.stderr
        assert f"sent: {images} of {images} images" in synced.stdout
        (key,) = recorder.experiments
        assert len(recorder.image_ids(key)) == len(set(recorder.image_ids(key))) == images
        wrong = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", "--traceback", "comet", "status", "secret"],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "COMET_URL_OVERRIDE": recorder.url,
                "COMET_API_KEY": API_KEY[::-1],
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert wrong.returncode == 2
        assert "does not let the API key that was found do this" in wrong.stderr
    told = ran.stdout + ran.stderr + synced.stdout + synced.stderr + wrong.stdout + wrong.stderr
    assert API_KEY not in told
    assert API_KEY[::-1] not in told
    found = [path for folder in (tmp_path, short_temporary) for path in folder.rglob("*") if path.is_file()]
    assert any("session" in str(path) for path in found)  # Ray's own files are among them
    for path in found:
        data = path.read_bytes()
        assert API_KEY.encode() not in data, path
        assert API_KEY[::-1].encode() not in data, path
