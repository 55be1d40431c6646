"""Trials in real Optuna storages: what they say, and that telling them again changes nothing that holds."""

import dataclasses
import io
from collections.abc import Iterator, Mapping, Set
from datetime import UTC, datetime, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, download_artifact, get_all_artifact_meta
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState
from PIL import Image

from orchestrator.tracking.optuna_storage import (
    Place,
    ProjectedStudy,
    ProjectedTrial,
    Projection,
    distribution,
    frozen_trials,
    parse_place,
    thumbnail,
)
from search_spaces.domains import Choices, Domain, FloatRange, IntRange
from search_spaces.errors import InputError
from search_spaces.requests import Failed, Settings, Value

AXES: dict[str, Domain] = {
    "guidance_scale": Choices(values=(1.0, 3.0, 5.0)),
    "num_inference_steps": Choices(values=(10, 20)),
    "negative_prompt": Choices(values=(None, "", "cartoon")),
}
SETTINGS: dict[str, Value] = {"guidance_scale": 3.0, "num_inference_steps": 10, "negative_prompt": None}
BEGUN = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


def a_trial(
    number: int,
    scores: Mapping[int, float],
    instances: int = 2,
    failures: Mapping[int, Failed] | None = None,
    **settings: Value,
) -> ProjectedTrial:
    mean = sum(scores.values()) / instances if len(scores) == instances else None
    return ProjectedTrial(
        number,
        {**SETTINGS, **settings},
        scores,
        failures or {},
        {i: f"{number:04x}{i:028x}" for i in scores},
        mean,
        None if mean is None else (mean - 1, mean + 1),
        BEGUN,
        BEGUN + timedelta(seconds=number + 1),
    )


def a_study(*trials: ProjectedTrial, ended: bool = False, instances: int = 2) -> ProjectedStudy:
    return ProjectedStudy("cat", "ours", "clip_score", instances, AXES, trials, ended)


def pictures(image_ids: Set[str]) -> Iterator[tuple[str, bytes]]:
    for image_id in sorted(image_ids):
        buffer = io.BytesIO()
        Image.new("RGB", (640, 320), (10, 200, 10)).save(buffer, format="PNG")
        yield image_id, buffer.getvalue()


def tell(place: Place, study: ProjectedStudy) -> optuna.Study:
    """Bring a storage up to date, and read it as anybody would."""
    projection = Projection(place, Path("mine"))
    assert projection.bring_up_to_date(study, pictures) == len(frozen_trials(study))
    projection.close()
    return read(place, study.name)


def read(place: Place, name: str = "cat") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=opened(place))


def opened(place: Place) -> BaseStorage:
    """A storage that is closed when the test ends."""
    storage = place.open()
    _OPENED.append(storage)
    return storage


_OPENED: list[BaseStorage] = []


def close_all() -> None:
    for storage in _OPENED:
        if isinstance(storage, RDBStorage):
            storage.remove_session()
            storage.engine.dispose()
    _OPENED.clear()


class StorageContract:
    """What holds in every storage: a class per storage says where one is."""

    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
        monkeypatch.chdir(tmp_path)
        yield parse_place(self.url())
        close_all()

    def test_a_storage_says_what_the_catalog_says(self, place: Place) -> None:
        told = tell(place, a_study(a_trial(0, {0: 20.0, 1: 30.0}), a_trial(1, {0: 5.0})))
        done, running = told.trials
        assert told.direction == optuna.study.StudyDirection.MAXIMIZE
        assert told.metric_names == ["clip_score"]
        assert (done.number, done.state, done.value) == (0, TrialState.COMPLETE, 25.0)
        assert done.params == SETTINGS
        assert done.intermediate_values == {0: 20.0, 1: 30.0}
        assert done.user_attrs == {
            "trial": 0,
            "instances": 2,
            "clip_score_interval": [24.0, 26.0],
            "image_ids": [f"{0:04x}{i:028x}" for i in range(2)],
        }
        assert done.datetime_start == BEGUN.astimezone().replace(tzinfo=None)
        assert done.duration == timedelta(seconds=1)
        assert (running.state, running.values, running.intermediate_values) == (
            TrialState.RUNNING,
            None,
            {0: 5.0},
        )
        assert running.datetime_complete is None
        importance = optuna.importance.get_param_importances(
            tell(
                place, a_study(*(a_trial(n, {0: n, 1: n}, guidance_scale=float(n % 5 + 1)) for n in range(8)))
            ),
            evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
        )
        assert "guidance_scale" in importance

    def test_telling_it_again_changes_nothing(self, place: Place) -> None:
        study = a_study(a_trial(0, {0: 20.0, 1: 30.0}), a_trial(2, {0: 5.0}), ended=True)
        first = tell(place, study).trials
        size = place.journal.stat().st_size if place.journal else 0
        assert tell(place, study).trials == first  # their ids and times included
        assert place.journal is None or place.journal.stat().st_size == size

    def test_a_running_trial_is_finished_where_it_stands(self, place: Place) -> None:
        first = tell(place, a_study(a_trial(1, {0: 5.0}))).trials
        assert [trial.state for trial in first] == [TrialState.WAITING, TrialState.RUNNING]
        assert first[0].user_attrs == {"trial": 0}
        begun = tell(place, a_study(a_trial(0, {1: 1.0}), a_trial(1, {0: 5.0, 1: 6.0})))
        assert [trial.state for trial in begun.trials] == [TrialState.RUNNING, TrialState.COMPLETE]
        last = tell(
            place,
            a_study(a_trial(0, {0: 3.0, 1: 1.0}), a_trial(1, {0: 5.0, 1: 6.0}), a_trial(2, {0: 9.0, 1: 9.0})),
        )
        assert [trial._trial_id for trial in last.trials[:2]] == [trial._trial_id for trial in first]
        assert [trial.value for trial in last.trials] == [2.0, 5.5, 9.0]
        assert last.trials[0].params == SETTINGS
        assert len(get_all_artifact_meta(last.trials[0], storage=last._storage)) == 2

    def test_a_continued_study_comes_out_right_without_duplicates(self, place: Place) -> None:
        """Another seed: what was complete has no mean any more, and nothing there can be altered."""
        trials = [a_trial(n, {0: 1.0, 1: 3.0}) for n in range(3)]
        assert [t.value for t in tell(place, a_study(*trials, ended=True)).trials] == [2.0, 2.0, 2.0]
        grown = [a_trial(n, {0: 1.0, 1: 3.0}, instances=3) for n in range(3)]
        begun = tell(place, a_study(*grown, instances=3))
        assert [t.state for t in begun.trials] == [TrialState.RUNNING] * 3
        whole = [a_trial(n, {0: 1.0, 1: 3.0, 2: 5.0}, instances=3) for n in range(4)]
        ended = tell(place, a_study(*whole, instances=3, ended=True))
        assert [(t.number, t.user_attrs["trial"], t.value) for t in ended.trials] == [
            (n, n, 3.0) for n in range(4)
        ]
        assert [s.study_name for s in optuna.get_all_study_summaries(opened(place))] == ["cat"]

    def test_values_that_an_axis_gained_are_told_with_distributions_that_are_equal(
        self, place: Place
    ) -> None:
        tell(place, a_study(a_trial(0, {0: 1.0, 1: 3.0}), ended=True))
        wider = a_study(
            a_trial(0, {0: 1.0, 1: 3.0}),
            a_trial(1, {0: 1.0, 1: 3.0}, guidance_scale=4.2, negative_prompt="drawing"),
            a_trial(2, {0: 1.0, 1: 3.0}, guidance_scale=0.25),
            ended=True,
        )
        told = tell(place, wider)
        assert [t.params["guidance_scale"] for t in told.trials] == [3.0, 4.2, 0.25]
        assert told.trials[1].params["negative_prompt"] == "drawing"
        assert told.trials[0].distributions == told.trials[2].distributions
        assert told.trials[0].distributions["guidance_scale"] == FloatDistribution(0.25, 5.0)

    @pytest.mark.parametrize(
        ("failures", "ended", "state", "reason"),
        [
            (
                Failed("infeasible", "a black image"),
                False,
                TrialState.FAIL,
                "instance 1 is infeasible: a black",
            ),
            (
                Failed("infeasible", "a black image"),
                True,
                TrialState.FAIL,
                "instance 1 is infeasible: a black",
            ),
            (Failed("lost", "the actor died"), False, TrialState.RUNNING, None),
            (Failed("lost", "the actor died"), True, TrialState.FAIL, "instance 1 is lost: the actor died"),
            (None, True, TrialState.PRUNED, "judged on 1 of 2 instances when the study ended"),
        ],
    )
    def test_what_has_no_mean_has_no_value(
        self, place: Place, failures: Failed | None, ended: bool, state: TrialState, reason: str | None
    ) -> None:
        trial = a_trial(0, {0: 5.0}, failures={1: failures} if failures else {})
        (told,) = tell(place, a_study(trial, ended=ended)).trials
        assert (told.state, told.values) == (state, None)
        assert told.intermediate_values == {0: 5.0}
        assert str(told.user_attrs.get("reason")).startswith(str(reason))

    def test_what_was_only_looked_at_says_so(self, place: Place) -> None:
        trial = dataclasses.replace(a_trial(0, {}), looked=2)
        (told,) = tell(place, a_study(trial, ended=True)).trials
        assert (
            told.user_attrs["reason"] == "looked at on 2 and judged on 0 of 2 instances when the study ended"
        )

    def test_a_number_that_nothing_was_judged_under_keeps_its_place(self, place: Place) -> None:
        gap, done = tell(place, a_study(a_trial(1, {0: 1.0, 1: 1.0}), ended=True)).trials
        assert (gap.state, gap.params) == (TrialState.FAIL, {})
        assert gap.user_attrs["reason"] == "nothing was judged under this number"
        assert (done.number, done.user_attrs["trial"]) == (1, 1)

    def test_thumbnails_are_artifacts_of_their_trial(self, place: Place, tmp_path: Path) -> None:
        scores = dict.fromkeys(range(6), 1.0)
        told = tell(place, a_study(a_trial(0, scores, instances=6), instances=6))
        artifacts = get_all_artifact_meta(told.trials[0], storage=told._storage)
        assert sorted(each.filename for each in artifacts) == [f"instance-{i}.png" for i in range(4)]
        store = FileSystemArtifactStore(Path("mine/artifacts"))
        for each in artifacts:
            target = tmp_path / each.filename
            download_artifact(artifact_store=store, artifact_id=each.artifact_id, file_path=str(target))
            with Image.open(target) as image:
                assert image.size == (192, 96)

    def test_a_picture_that_is_gone_leaves_its_trial_without_thumbnail(self, place: Place) -> None:
        projection = Projection(place, Path("mine"))
        study = a_study(a_trial(0, {0: 1.0, 1: 2.0}))
        projection.bring_up_to_date(study, lambda _: iter(()))
        projection.close()
        told = read(place)
        assert told.trials[0].value == 1.5
        assert not get_all_artifact_meta(told.trials[0], storage=told._storage)

    def test_another_study_of_this_name_is_refused_and_left_alone(self, place: Place) -> None:
        theirs = optuna.create_study(study_name="cat", storage=opened(place))
        theirs.add_trial(optuna.trial.create_trial(value=1.0))
        projection = Projection(place, Path("mine"))
        with pytest.raises(InputError, match="holds another study named 'cat'; name another storage"):
            projection.bring_up_to_date(a_study(a_trial(0, {0: 1.0, 1: 2.0})), pictures)
        with pytest.raises(InputError, match="holds another study named 'cat'"):
            projection.claim(a_study())
        projection.close()
        assert [trial.value for trial in read(place).trials] == [1.0]

    def test_our_own_study_of_another_root_is_another_study(self, place: Place) -> None:
        tell(place, a_study(a_trial(0, {0: 1.0, 1: 2.0})))
        projection = Projection(place, Path("other"))
        with pytest.raises(InputError, match="holds another study named 'cat'"):
            projection.claim(dataclasses.replace(a_study(), token="theirs"))
        projection.close()

    def test_trials_that_somebody_added_are_put_right(self, place: Place) -> None:
        study = a_study(a_trial(0, {0: 1.0, 1: 2.0}))
        tell(place, study).add_trial(optuna.trial.create_trial(value=99.0))
        assert [trial.value for trial in tell(place, study).trials] == [1.5]

    def test_attributes_that_somebody_added_stay(self, place: Place) -> None:
        study = a_study(a_trial(0, {0: 1.0}))
        told = tell(place, study)
        told._storage.set_trial_user_attr(told.trials[0]._trial_id, "mine", "nice")
        (trial,) = tell(place, a_study(a_trial(0, {0: 1.0, 1: 2.0}))).trials
        assert (trial.user_attrs["mine"], trial.value) == ("nice", 1.5)

    def test_a_study_without_trials_is_there(self, place: Place) -> None:
        assert tell(place, a_study()).trials == []
        assert [t.value for t in tell(place, a_study(a_trial(0, {0: 1.0, 1: 2.0}))).trials] == [1.5]


class TestJournal(StorageContract):
    def url(self) -> str:
        return "journal:cat.log"


class TestSqlite(StorageContract):
    def url(self) -> str:
        return "sqlite:///cat.db"


def test_a_small_picture_is_left_as_large_as_it_is() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, format="PNG")
    with Image.open(io.BytesIO(thumbnail(buffer.getvalue()))) as image:
        assert image.size == (64, 64)


@pytest.mark.parametrize(
    ("domain", "tried", "expected"),
    [
        (Choices(values=(3.0, 1.0)), [3.0], FloatDistribution(1.0, 3.0)),
        (Choices(values=(10, 30)), [10], IntDistribution(10, 30)),
        (Choices(values=(10, 30)), [12.5], FloatDistribution(10.0, 30.0)),
        (Choices(values=(10, 30)), [40], IntDistribution(10, 40)),
        (Choices(values=(7.5,)), [], FloatDistribution(7.5, 7.5)),
        (Choices(values=(2**60, 1)), [], FloatDistribution(1.0, float(2**60))),
        (Choices(values=(True, False)), [True], CategoricalDistribution([True, False])),
        (Choices(values=(None, 1, 2)), [2], CategoricalDistribution([None, 1, 2])),
        (Choices(values=("", "cartoon")), ["x"], CategoricalDistribution(["", "cartoon", "x"])),
        (FloatRange(low=0.5, high=2.5, step=0.5), [0.7], FloatDistribution(0.5, 2.5)),
        (FloatRange(low=0.1, high=10, log=True), [0.1], FloatDistribution(0.1, 10.0, log=True)),
        (FloatRange(low=0.1, high=10, log=True), [0.0], FloatDistribution(0.0, 10.0)),
        (IntRange(low=1, high=9, step=4), [2], IntDistribution(1, 9)),
        (IntRange(low=1, high=64, log=True), [], IntDistribution(1, 64, log=True)),
        (None, ["a", "b", "a"], CategoricalDistribution(["a", "b"])),
    ],
)
def test_distributions_hold_whatever_was_tried(
    domain: Domain | None, tried: list[Value], expected: optuna.distributions.BaseDistribution
) -> None:
    found = distribution(domain, tried)
    assert found == expected
    for value in tried:
        assert found._contains(found.to_internal_repr(value))


def test_large_whole_numbers_do_not_break_a_trial() -> None:
    settings: Settings = {"seed_offset": 2**62 + 1}
    trial = dataclasses.replace(a_trial(0, {0: 1.0, 1: 2.0}), settings=settings)
    (frozen,) = frozen_trials(dataclasses.replace(a_study(trial), axes={}))
    assert frozen.params == {"seed_offset": float(2**62)}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("journal:a/b", "a/b"),
        ("b.log", "b.log"),
        ("x/b.journal", "x/b.journal"),
        ("sqlite:///a.db", "sqlite:///a.db"),
        ("postgresql://me:secret@host:5432/name?password=secret", "postgresql://me:***@host:5432/name"),
    ],
)
def test_places(text: str, shown: str) -> None:
    assert str(parse_place(text)) == shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("study.db", "'study.db' is no Optuna storage; write journal:PATH"),
        ("me:secret@host/name", "that is no Optuna storage"),
        ("journal:", "has no path behind it"),
        ("postgresql://me:secret@host:port/name", "the URL of the Optuna storage cannot be read; write"),
        ("sqlite://", "is in memory only"),
        ("sqlite:///:memory:", "is in memory only"),
    ],
)
def test_what_is_no_place(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as raised:
        parse_place(text)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("journal:nowhere/a.log", "nowhere is no folder; make it"),
        ("sqlite:///nowhere/a.db", "nowhere is no folder; make it"),
        ("journal:.", "it is a folder"),
        ("postgres://me:secret@host/name", "'postgres' is no database .* did you mean 'postgresql'"),
        ("postgresql+nodriver://me:secret@host/name", "is no database that SQLAlchemy knows"),
    ],
)
def test_a_place_that_cannot_be_reached(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for reach in (parse_place(text).check, parse_place(text).open):
        with pytest.raises(InputError, match=words) as raised:
            reach()
        assert "secret" not in str(raised.value)
        assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir()), "looking writes nothing"


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.log", b"just words\nand more\n"), ("a.log", b'{"op_code": 4}\n'), ("a.db", b"not a database" * 99)],
)
def test_a_file_that_is_no_storage(
    name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    with pytest.raises(InputError, match=r"is no journal that Optuna can read|cannot be reached"):
        parse_place(name if name.endswith(".log") else f"sqlite:///{name}").open()
    assert Path(name).read_bytes() == content


def test_a_lock_that_a_killed_process_left_on_a_journal_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna breaks it after 30 seconds, where the lock, a link to the journal, leads there."""
    monkeypatch.chdir(tmp_path)
    backend = parse_place("journal:cat.log").open()._backend
    backend._lock.acquire()  # and never released
    assert Path("cat.log.lock").resolve() == Path("cat.log").resolve()
    Path("deeper").mkdir()
    backend = parse_place("journal:deeper/cat.log").open()._backend
    backend._lock.acquire()
    assert Path("deeper/cat.log.lock").stat()
    monkeypatch.setattr(backend._lock, "grace_period", 0.1)
    monkeypatch.setattr(optuna.storages.journal._file._logger, "warning", lambda _: None)
    assert backend._lock.acquire()


def test_an_error_is_told_without_the_passwords_of_its_place() -> None:
    place = parse_place("postgresql://me:s3cret@host/name?sslpassword=other")
    error = ValueError("no s3cret and other\nwith more")
    assert place.why(error) == "no *** and ***"
    assert str(place.unreachable(error)) == (
        "the Optuna storage postgresql://me:***@host/name cannot be reached: no *** and ***"
    )
