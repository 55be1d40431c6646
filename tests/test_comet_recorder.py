"""The recorder beside the real SDK, in a process of its own: what it is sent is what it keeps and lists."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.comet_recorder import API_KEY, CometRecorder, Fault

QUIET = {
    "COMET_DISABLE_AUTO_LOGGING": "1",
    "COMET_ERROR_TRACKING_ENABLE": "0",
    "COMET_INTERNAL_REPORTING": "0",
    "COMET_LOGGING_CONSOLE": "CRITICAL",
    "COMET_HTTP_SESSION_RETRY_TOTAL": "0",
    "COMET_TIMEOUT_API": "2",
    "COMET_TIMEOUT_FILE_UPLOAD": "2",
    "COMET_TIMEOUT_CLEANING": "5",
    "COMET_TIMEOUT_UPLOAD": "5",
}
KEY = "0123456789abcdef0123456789abcdef"

START = f"""
import comet_ml, json, pathlib
quiet = dict.fromkeys(['log_code', 'log_graph', 'auto_param_logging', 'auto_metric_logging', 'parse_args',
    'auto_output_logging', 'log_env_details', 'log_git_metadata', 'log_git_patch', 'auto_log_co2'], False)
config = comet_ml.ExperimentConfig(name='cats', tags=['a', 'b'], display_summary_level=0, **quiet)
experiment = comet_ml.start(online=True, mode='get_or_create', experiment_key='{KEY}', workspace='friends',
    project_name='dragons', experiment_config=config)
"""


def sdk(recorder: CometRecorder, folder: Path, script: str) -> str:
    """Run a script with the SDK sent to the recorder; what it printed, errors included."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "TMPDIR": str(folder),
            **QUIET,
            **recorder.environment,
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> "tuple[CometRecorder, str]":
    folder = tmp_path_factory.mktemp("sdk")
    script = f"""{START}
pathlib.Path('a.png').write_bytes(b'a picture')
pathlib.Path('b.txt').write_bytes(b'a file')
experiment.log_parameters({{'model': 'toyworld'}})
experiment.log_metric('mean', 0.5, step=3)
experiment.log_image('a.png', name='online', step=1, metadata={{'image_id': 'id1'}})
experiment.log_asset('b.txt', file_name='b.txt')
artifact = comet_ml.Artifact('photos', 'dataset', aliases=['best'])
artifact.add('a.png', logical_path='cats/a.png', metadata={{'subject': 'cat'}})
experiment.log_artifact(artifact)
experiment.flush()
import time
for _ in range(100):
    try:
        logged = experiment.get_artifact('photos', workspace='friends', version_or_alias='best')
        break
    except comet_ml.exceptions.CometException:
        time.sleep(0.05)
logged.download('down')
assert pathlib.Path('down/cats/a.png').read_bytes() == b'a picture'
assert str(logged.version) == '1.0.0'
try:
    experiment.get_artifact('gone', workspace='friends')
except Exception as error:
    print(type(error).__name__)
experiment.end()

api = comet_ml.api.API(cache=False).get_experiment_by_key('{KEY}')
print(api.log_asset('a.png', step=2, name='rest', ftype='image', metadata=json.dumps({{'image_id': 'id2'}})).keys())
api.log_metric('mean', 0.75, step=4)
api.log_parameter('seeds', '[0]')
api.log_other('study', 'cats')
print(json.dumps([[a['fileName'], a['step'], a['metadata']] for a in api.get_asset_list('image')]))
print([(m['metricName'], m['metricValue'], m['step']) for m in api.get_metrics('mean')])
assert api.get_asset(api.get_asset_list('image')[0]['assetId']) == b'a picture'
print(comet_ml.api.API(cache=False).get_experiment_by_key('f' * 32))
"""
    with CometRecorder() as recorder:
        return recorder, sdk(recorder, folder, script)


def test_the_sdk_finds_what_it_sent(told: tuple[CometRecorder, str]) -> None:
    assert told[1].splitlines() == [
        "ArtifactNotFound",
        "dict_keys(['assetId'])",
        '[["online", 1, {"image_id": "id1"}], ["rest", 2, {"image_id": "id2"}]]',
        "[('mean', '0.5', 3), ('mean', '0.75', 4)]",
        "None",
    ]


def test_what_was_sent_is_kept(told: tuple[CometRecorder, str]) -> None:
    recorder, _ = told
    experiment = recorder.experiments[KEY]
    assert (experiment.workspace, experiment.project, experiment.name) == ("friends", "dragons", "cats")
    assert experiment.tags == ["a", "b"]
    assert [(a.name, a.step, a.data) for a in recorder.images(KEY)] == [
        ("online", 1, b"a picture"),
        ("rest", 2, b"a picture"),
    ]
    assert recorder.image_ids(KEY) == ["id1", "id2"]
    assert recorder.files(KEY)["b.txt"] == b"a file"
    assert experiment.parameters["model"] == "toyworld"
    assert experiment.parameters["seeds"] == "[0]"
    assert experiment.others["study"] == "cats"
    (version,) = recorder.artifacts
    assert (version.name, version.version, version.state) == ("photos", "1.0.0", "CLOSED")
    assert recorder.unknown == []


def test_no_key_is_kept(told: tuple[CometRecorder, str]) -> None:
    recorder, _ = told
    assert len(recorder.requests) > 10
    assert API_KEY not in repr(recorder.requests)


def test_fails_on_request(tmp_path: Path) -> None:
    script = f"""{START}
experiment.end()
pathlib.Path('a.png').write_bytes(b'a picture')
api = comet_ml.api.API(cache=False).get_experiment_by_key('{KEY}')
for number in range(7):
    try:
        api.log_asset('a.png', step=number, name='n', ftype='image')
        print('sent')
    except Exception as error:
        print(type(error).__name__)
"""
    with CometRecorder(most_images=3) as recorder:
        recorder.faults += [
            Fault("upload-asset", "status", status=429, times=1),
            Fault("upload-asset", "status", status=500, times=1),
            Fault("upload-asset", "lose reply", times=1),
            Fault("upload-asset", "drop", times=1),
            Fault("upload-asset", "slow", seconds=0.1, times=1),
            Fault("upload-asset", "hang", times=1),
        ]
        printed = sdk(recorder, tmp_path, script)
        assert printed.splitlines() == [
            "CometRestApiException",
            "CometRestApiException",
            "ConnectionError",
            "ConnectionError",
            "sent",
            "ReadTimeout",
            "sent",
        ]
        assert [a.step for a in recorder.images(KEY)] == [2, 4, 6]
        again = sdk(recorder, tmp_path, script.replace("range(7)", "range(1)"))
        assert again == "CometRestApiException\n"  # the limit of images is reached
        recorder.stop()
        recorder.start()
        found = f"comet_ml.api.API().get_experiment_by_key('{KEY}').get_asset_list('image')"
        listing = f"import comet_ml; print(len({found}))"
        assert sdk(recorder, tmp_path, listing) == "3\n"
