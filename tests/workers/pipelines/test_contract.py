"""The seam `Pipeline`: what holds for every implementation."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from PIL import Image

from search_spaces.models import ModelDescription
from search_spaces.requests import Failed, ImageRequest, Value
from tests.workers.helpers import a_request, complete, farthest
from workers.pipelines import Generated, Pipeline, slot_engine
from workers.pipelines.fake import FakePipeline
from workers.pipelines.slot_engine import SlotEngine
from workers.pipelines.whole_call import WholeCallPipeline

ENOUGH = 100
"""Calls within which a handful of requests must have come back."""


def drain(pipeline: Pipeline, cancelled: Sequence[str] = ()) -> list[Generated]:
    """Call with nothing new until nothing comes any more."""
    back: list[Generated] = []
    for _ in range(ENOUGH):
        made = pipeline.advance([], cancelled)
        if not made:
            return back
        back += made
    raise AssertionError("the pipeline gives back without end")


def names(made: Sequence[Generated]) -> list[str]:
    return sorted(item.request.image_id for item in made)


class PipelineContract:
    """Three lines of test class per implementation: a fixture `pipeline` that holds fewer than 7 in a call.

    `settings` and `pictures` are what its requests are made of.
    """

    @pytest.fixture
    def settings(self) -> Mapping[str, Value]:
        return {"num_inference_steps": 1, "scheduler": "DDIMScheduler"}

    @pytest.fixture
    def pictures(self) -> Sequence[str | None]:
        return [None, None]

    @pytest.fixture
    def requests(self, settings: Mapping[str, Value], pictures: Sequence[str | None]) -> list[ImageRequest]:
        """Seven requests, some of which agree on all but the seed."""
        image, mask = pictures
        return [
            a_request({**settings, "guidance_scale": float(number % 3)}, seed=number, image=image, mask=mask)
            for number in range(7)
        ]

    @pytest.fixture
    def impossible(self, settings: Mapping[str, Value], pictures: Sequence[str | None]) -> ImageRequest:
        """A request that cannot be drawn."""
        return a_request({**settings, "scheduler": "NoSuchScheduler"}, image=pictures[0], mask=pictures[1])

    def test_nothing_comes_of_nothing(self, pipeline: Pipeline) -> None:
        assert pipeline.advance([]) == []
        assert pipeline.advance([], {"unknown"}) == []

    def test_every_request_comes_back_exactly_once(
        self, pipeline: Pipeline, requests: list[ImageRequest]
    ) -> None:
        first = pipeline.advance(requests)
        assert 0 < len(first) < len(requests)
        assert names([*first, *drain(pipeline)]) == sorted(request.image_id for request in requests)
        assert pipeline.advance([]) == []

    def test_work_may_come_in_at_any_time(self, pipeline: Pipeline, requests: list[ImageRequest]) -> None:
        back = [
            *pipeline.advance(requests[:3]),
            *pipeline.advance([]),
            *pipeline.advance(requests[3:4]),
            *pipeline.advance(requests[4:]),
            *drain(pipeline),
        ]
        assert names(back) == sorted(request.image_id for request in requests)

    def test_each_picture_comes_with_its_own_request(
        self, pipeline: Pipeline, requests: list[ImageRequest]
    ) -> None:
        back = [*pipeline.advance(requests), *drain(pipeline)]
        together = {made.request.image_id: made.picture for made in back}
        for request in requests[::3]:
            (alone,) = pipeline.advance([request])
            picture = together[request.image_id]
            assert alone.request is request
            assert isinstance(picture, Image.Image)
            assert isinstance(alone.picture, Image.Image)
            assert farthest(picture, alone.picture) <= 1

    def test_pictures_are_rgb_and_their_costs_are_told(
        self, pipeline: Pipeline, requests: list[ImageRequest]
    ) -> None:
        for made in pipeline.advance(requests):
            assert isinstance(made.picture, Image.Image)
            assert made.picture.mode == "RGB"
            assert made.seconds >= 0
            assert made.unet_calls == 1

    def test_what_is_cancelled_before_it_is_begun_never_comes_back(
        self, pipeline: Pipeline, requests: list[ImageRequest]
    ) -> None:
        first = pipeline.advance(requests)
        held = {request.image_id for request in requests} - set(names(first))
        assert pipeline.advance([], held) == []
        assert drain(pipeline) == []

    def test_what_is_not_cancelled_goes_on(self, pipeline: Pipeline, requests: list[ImageRequest]) -> None:
        begun = set(names(pipeline.advance(requests)))
        gone, *kept = [request.image_id for request in requests if request.image_id not in begun]
        back = [*pipeline.advance([], {gone, "unknown"}), *drain(pipeline)]
        assert names(back) == sorted(kept)

    def test_what_comes_in_cancelled_is_never_begun(
        self, pipeline: Pipeline, requests: list[ImageRequest]
    ) -> None:
        assert pipeline.advance(requests, {request.image_id for request in requests}) == []
        assert drain(pipeline) == []

    def test_what_was_cancelled_may_be_asked_for_again(
        self, pipeline: Pipeline, requests: list[ImageRequest]
    ) -> None:
        pipeline.advance(requests[:1], {requests[0].image_id})
        assert names(pipeline.advance(requests[:1])) == [requests[0].image_id]

    def test_a_request_asked_for_twice_comes_back_twice(
        self, pipeline: Pipeline, requests: list[ImageRequest]
    ) -> None:
        back = [*pipeline.advance([requests[0]] * 5), *drain(pipeline)]
        assert names(back) == [requests[0].image_id] * 5

    def test_a_failure_is_an_outcome_and_the_others_are_drawn(
        self, pipeline: Pipeline, requests: list[ImageRequest], impossible: ImageRequest
    ) -> None:
        back = [*pipeline.advance([requests[0], impossible, *requests[1:]]), *drain(pipeline)]
        assert len(back) == len(requests) + 1
        for made in back:
            assert isinstance(made.picture, Failed) == (made.request is impossible)
            assert not isinstance(made.picture, Failed) or made.picture.reason


class TestFakePipeline(PipelineContract):
    @pytest.fixture
    def pipeline(self) -> Pipeline:
        return FakePipeline(batch=2, fails=_impossible)

    def test_says_what_it_made_in_order(self, requests: list[ImageRequest]) -> None:
        fake = FakePipeline(batch=3)
        fake.advance(requests)
        fake.advance([])
        assert fake.made == [request.image_id for request in requests[:6]]


class TestWholeCallPipeline(PipelineContract):
    @pytest.fixture
    def settings(self, toyworld: ModelDescription) -> Mapping[str, Value]:
        return complete(toyworld, num_inference_steps=1)

    @pytest.fixture
    def pictures(self, inputs: Mapping[str, Image.Image]) -> Sequence[str | None]:
        return list(inputs)[:2]

    @pytest.fixture
    def pipeline(
        self, toyworld: ModelDescription, toyworld_pipeline: Any, inputs: Mapping[str, Image.Image]
    ) -> Pipeline:
        return WholeCallPipeline(toyworld_pipeline, toyworld, inputs, batch=2)


class TestSlotEngine(PipelineContract):
    @pytest.fixture
    def settings(self, toyworld: ModelDescription) -> Mapping[str, Value]:
        return complete(toyworld, num_inference_steps=1)

    @pytest.fixture
    def pictures(self, inputs: Mapping[str, Image.Image]) -> Sequence[str | None]:
        return list(inputs)[:2]

    @pytest.fixture
    def pipeline(
        self,
        toyworld: ModelDescription,
        toyworld_pipeline: Any,
        inputs: Mapping[str, Image.Image],
        monkeypatch: pytest.MonkeyPatch,
    ) -> Pipeline:
        monkeypatch.setattr(slot_engine, "DECODED_TOGETHER", 2)  # else it waits until all seven are ready
        return SlotEngine(toyworld_pipeline, toyworld, inputs, rows=3, patience=600.0)


def _impossible(request: ImageRequest) -> Failed | None:
    if request.settings["scheduler"] != "NoSuchScheduler":
        return None
    return Failed("lost", "there is no such scheduler")
