"""The worker: every request ends in one outcome with its own picture, scores and provenance."""

import hashlib
import io
import json
import math
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from search_spaces.models import ModelDescription
from search_spaces.requests import Failed, ImageRequest, Looked, Scored
from tests.workers.helpers import a_request, complete
from workers.device import device_name, gpu_count
from workers.inputs import pixel_hash
from workers.pipelines import Generated
from workers.pipelines.fake import FakePipeline
from workers.pipelines.whole_call import WholeCallPipeline
from workers.png import Encoder, decode_png
from workers.scoring import Scorer
from workers.scoring.clip import ClipScorer
from workers.scoring.fake import BrightnessScorer
from workers.worker import Finished, Worker

BLACK = Failed("infeasible", "the picture is all black")
LOST = Failed("lost", "out of memory")


class ByText:
    """Scores the number that a text says, whatever the picture; `nan` and `inf` too."""

    def score(self, images: Sequence[Image.Image], requests: Sequence[ImageRequest]) -> Sequence[float]:
        assert len(images) == len(requests)
        return [float(request.score_text) for request in requests]

    def notes(self, requests: Sequence[ImageRequest]) -> Sequence[str]:
        texts = dict.fromkeys(request.score_text for request in requests)
        return [f"{text} is long" for text in texts if len(text) > 5]


def some(count: int) -> list[ImageRequest]:
    return [a_request({"num_inference_steps": n + 1}, seed=n, score_text=str(n)) for n in range(count)]


def refusing(failures: Mapping[int, Failed]) -> FakePipeline:
    return FakePipeline(batch=8, fails=lambda request: failures.get(request.seed))


def picture(finished: Finished) -> Image.Image:
    assert finished.png is not None
    return decode_png(finished.png)


class TestAdvance:
    def test_outcomes_keep_their_requests_when_failures_are_mixed_in(self) -> None:
        requests = some(6)
        failures = {0: BLACK, 3: LOST, 5: BLACK}
        finished = Worker(refusing(failures), {"said": ByText()}, "cpu").advance(requests)
        assert [item.request for item in finished] == requests
        assert [item.outcome for item in finished] == [
            BLACK,
            Scored({"said": 1.0}),
            Scored({"said": 2.0}),
            LOST,
            Scored({"said": 4.0}),
            BLACK,
        ]
        assert [item.png is None for item in finished] == [True, False, False, True, False, True]

    def test_each_picture_is_its_own_and_says_so(self) -> None:
        requests = some(5)
        worker = Worker(refusing({1: BLACK}), {"bright": BrightnessScorer()}, "cpu")
        for item in worker.advance(requests):
            if item.request.seed == 1:
                continue
            colour = tuple(bytes.fromhex(item.request.image_id[:6]))
            assert picture(item).getpixel((0, 0)) == colour
            expected = BrightnessScorer().score([picture(item)], [item.request])[0]
            assert item.outcome == Scored({"bright": expected})
            with Image.open(io.BytesIO(item.png or b"")) as stored:
                stored.load()
                document = json.loads(stored.text["latentsweep"])  # type: ignore[attr-defined]  # of PNG images
            assert document["image_id"] == item.request.image_id

    def test_work_is_taken_in_and_given_back_as_the_pipeline_does(self) -> None:
        requests = some(5)
        worker = Worker(FakePipeline(batch=2), {"said": ByText()}, "cpu")
        back = [worker.advance(requests), worker.advance([], {requests[2].image_id}), worker.advance([])]
        assert [[item.request.seed for item in items] for items in back] == [[0, 1], [3, 4], []]

    def test_several_scorers_score_every_picture(self) -> None:
        scorers: dict[str, Scorer] = {"said": ByText(), "bright": BrightnessScorer()}
        (item,) = Worker(FakePipeline(), scorers, "cpu").advance(some(1))
        assert isinstance(item.outcome, Scored)
        assert item.outcome.scores == {
            "said": 0.0,
            "bright": BrightnessScorer().score([picture(item)], [item.request])[0],
        }

    @pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
    def test_a_score_that_is_not_finite_is_a_failure_of_its_own_request(self, value: str) -> None:
        requests = [
            a_request(seed=0, score_text="1"),
            a_request(seed=1, score_text=value),
            a_request(seed=2, score_text="3"),
        ]
        scorers: dict[str, Scorer] = {"bright": BrightnessScorer(), "said": ByText()}
        first, second, third = Worker(FakePipeline(), scorers, "cpu").advance(requests)
        assert second.outcome == Failed("infeasible", "said is not a finite number")
        for item, expected in ((first, 1.0), (third, 3.0)):
            assert isinstance(item.outcome, Scored)
            assert item.outcome.scores["said"] == expected

    def test_notes_of_the_scorers_come_with_the_pictures(self) -> None:
        requests = [a_request(seed=0, score_text="1"), a_request(seed=1, score_text="1000000")]
        finished = Worker(FakePipeline(), {"said": ByText()}, "cpu").advance(requests)
        assert {note for item in finished for note in item.notes} == {"1000000 is long"}
        assert Worker(FakePipeline(), {"said": ByText()}, "cpu").advance(requests[:1])[0].notes == ()

    def test_nothing_comes_of_nothing(self) -> None:
        worker = Worker(FakePipeline(), {"said": ByText(), "bright": BrightnessScorer()}, "cpu")
        assert list(worker.advance([])) == []
        assert list(worker.score([])) == []

    def test_failures_only_need_no_scorer(self) -> None:
        class Untouchable(ByText):
            def score(
                self, images: Sequence[Image.Image], requests: Sequence[ImageRequest]
            ) -> Sequence[float]:
                assert not images
                return []

        finished = Worker(refusing({0: LOST, 1: BLACK}), {"said": Untouchable()}, "cpu").advance(some(2))
        assert [item.outcome for item in finished] == [LOST, BLACK]


class Fixed:
    """Gives back what it was made with."""

    steps = 0

    def __init__(self, *made: Generated) -> None:
        self._made = made

    def advance(self, new: Sequence[ImageRequest], cancelled: Collection[str] = ()) -> Sequence[Generated]:
        return self._made


class TestProvenance:
    def test_says_how_a_picture_came_to_be(self) -> None:
        request, failing = some(2)
        pipeline = Fixed(
            Generated(request, Image.new("RGB", (24, 16), (9, 9, 9)), 0.25, 7),
            Generated(failing, LOST, 0.5, None),
        )
        made, lost = Worker(pipeline, {"bright": BrightnessScorer()}, "NVIDIA H100").advance([])
        assert made.provenance.device == lost.provenance.device == "NVIDIA H100"
        assert (made.provenance.width, made.provenance.height) == (24, 16)
        assert (made.provenance.unet_calls, made.provenance.seconds_generate) == (7, 0.25)
        assert made.provenance.seconds_score > 0
        assert made.png is not None
        assert made.provenance.sha256 == hashlib.sha256(made.png).hexdigest()
        assert lost.provenance.sha256 is None
        assert (lost.provenance.width, lost.provenance.height) == (0, 0)
        assert (lost.provenance.unet_calls, lost.provenance.seconds_generate) == (None, 0.5)
        assert lost.provenance.seconds_score == 0

    @pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
    def test_a_machine_without_gpu_names_its_processor(self) -> None:
        assert device_name() == f"cpu {platform.machine()}"
        assert gpu_count() == 0


class TestScoreStored:
    def test_gives_the_score_of_generation_and_no_picture(self) -> None:
        worker = Worker(FakePipeline(), {"bright": BrightnessScorer()}, "cpu")
        made = worker.advance(some(4))
        stored = [(item.request, item.png or b"") for item in made]
        again = worker.score(stored[::-1])
        assert [item.request for item in again] == [item.request for item in made][::-1]
        assert [item.outcome for item in again] == [item.outcome for item in made][::-1]
        assert all(item.png is None for item in again)
        assert all(item.provenance.unet_calls is None for item in again)
        assert all(item.provenance.seconds_generate == 0 for item in again)
        assert all((item.provenance.width, item.provenance.height) == (8, 8) for item in again)

    def test_scores_by_the_text_that_is_asked_now(self) -> None:
        worker = Worker(FakePipeline(), {"said": ByText()}, "cpu")
        (made,) = worker.advance([a_request(score_text="1")])
        (again,) = worker.score([(a_request(score_text="2"), made.png or b"")])
        assert (made.outcome, again.outcome) == (Scored({"said": 1.0}), Scored({"said": 2.0}))
        assert made.request.image_id == again.request.image_id


def test_with_the_bundled_models(
    toyworld: ModelDescription,
    toyworld_pipeline: Any,
    clip_scorer: ClipScorer,
    inputs: Mapping[str, Image.Image],
    cat: tuple[Image.Image, Image.Image],
) -> None:
    """Real pictures, really scored: scoring what is stored gives what generation gave, to the last bit."""
    image, mask = map(pixel_hash, cat)
    pipeline = WholeCallPipeline(toyworld_pipeline, toyworld, inputs, batch=4)
    worker = Worker(pipeline, {"clip_score": clip_scorer}, "cpu")
    settings = complete(toyworld, num_inference_steps=8, guidance_scale=5.0)
    requests = [
        a_request(settings, prompt, seed, image, mask, score_text="a green dragon")
        for seed in range(2)
        for prompt in ("a green dragon", "an orange cat")
    ]
    made = {item.request.image_id: item for item in worker.advance(requests)}
    scores = []
    for request in requests:
        item = made[request.image_id]
        assert isinstance(item.outcome, Scored)
        assert picture(item).size == (64, 64)
        assert item.provenance.unet_calls == 8
        assert item.provenance.seconds_generate > 0
        scores.append(item.outcome.scores["clip_score"])
    assert all(math.isfinite(score) for score in scores)
    # CLIP judges by the score text, and the pictures were drawn for their prompts.
    assert min(scores[0], scores[2]) > max(scores[1], scores[3])
    again = worker.score([(request, made[request.image_id].png or b"") for request in requests])
    assert [item.outcome for item in again] == [made[request.image_id].outcome for request in requests]


class TestOverlap:
    """Scoring beside the generation of what follows: nothing is lost, doubled or late for ever."""

    def test_everything_comes_back_once(self) -> None:
        worker = Worker(FakePipeline(2), {"clip_score": BrightnessScorer()}, "fake", overlap=True)
        requests = [a_request({"num_inference_steps": 1}, seed=number) for number in range(9)]
        back = list(worker.advance(requests))
        while len(back) < len(requests):
            more = worker.advance([])
            back += more
        assert sorted(item.request.image_id for item in back) == sorted(r.image_id for r in requests)
        assert worker.advance([]) == []
        assert all(isinstance(item.outcome, Scored) and item.png for item in back)

    def test_stored_pictures_are_scored_in_turn(self) -> None:
        worker = Worker(FakePipeline(2), {"clip_score": BrightnessScorer()}, "fake", overlap=True)
        request = a_request({"num_inference_steps": 1})
        made = list(worker.advance([request])) or list(worker.advance([]))
        (again,) = worker.score([(request, made[0].png or b"")])
        assert again.outcome == made[0].outcome
        assert again.png is None

    def test_an_error_in_the_scorer_reaches_the_caller(self) -> None:
        class Broken(BrightnessScorer):
            def score(
                self, images: Sequence[Image.Image], requests: Sequence[ImageRequest]
            ) -> Sequence[float]:
                raise RuntimeError("the scorer is broken")

        worker = Worker(FakePipeline(2), {"clip_score": Broken()}, "fake", overlap=True)

        def work() -> None:
            worker.advance([a_request({"num_inference_steps": 1})])
            worker.advance([])

        with pytest.raises(RuntimeError, match="the scorer is broken"):
            work()


def test_an_early_look_is_scored_and_not_kept() -> None:
    class Looking:
        steps = 0

        def advance(
            self, new: Sequence[ImageRequest], cancelled: Collection[str] = ()
        ) -> Sequence[Generated]:
            picture = Image.new("RGB", (8, 8), "grey")
            return [Generated(request, picture, 0.1, 3, after=3, notes=("half the rows",)) for request in new]

    worker = Worker(Looking(), {"clip_score": BrightnessScorer()}, "fake")
    (seen,) = worker.advance([a_request({"num_inference_steps": 9})])
    assert isinstance(seen.outcome, Looked)
    assert seen.outcome.after == 3
    assert seen.png is None
    assert seen.notes == ("half the rows",)


class WidePipeline(FakePipeline):
    """Draws for seed 1 a picture that is wider than a WebP file can hold."""

    def advance(self, new: Sequence[ImageRequest], cancelled: Collection[str] = ()) -> Sequence[Generated]:
        made = super().advance(new, cancelled)
        wide = Image.new("RGB", (16_384, 1))
        return [replace(item, picture=wide) if item.request.seed == 1 else item for item in made]


def test_a_picture_that_its_format_cannot_hold_is_lost_by_name_and_the_others_are_kept() -> None:
    """Not infeasible: another format holds it, and the catalog would remember it for that one too."""
    worker = Worker(WidePipeline(), {"said": ByText()}, "cpu", encode=Encoder("webp"))
    first, wide, last = worker.advance(some(3))
    assert isinstance(wide.outcome, Failed)
    assert wide.outcome.kind == "lost"
    assert wide.outcome.reason.startswith("it cannot be written as webp: ")
    assert wide.png is None
    assert [first.outcome, last.outcome] == [Scored({"said": 0.0}), Scored({"said": 2.0})]
    assert None not in (first.png, last.png)


def test_a_picture_tells_its_scores() -> None:
    (finished,) = Worker(FakePipeline(), {"said": ByText()}, "cpu").advance(some(2)[1:])
    told = json.loads(str(picture(finished).info["latentsweep"]))
    assert told["scores"] == {"said": 1.0}
