"""Small studies over fakes, shared by the tests of this room."""

from collections.abc import Sequence

from search_spaces.domains import Choices
from search_spaces.models import ModelDescription, ScorerDescription
from search_spaces.requests import Failed, ImageRequest
from search_spaces.space import Space
from search_spaces.strategies import PastTrial
from search_spaces.strategies.grid import Grid
from search_spaces.strategies.trials import Trials
from search_spaces.study import PinnedInput, Study
from search_spaces.study_file import CometSpec, SearchSpec
from workers.pipelines.fake import FakePipeline
from workers.scoring.fake import BrightnessScorer
from workers.worker import Worker

MODEL = ModelDescription(
    name="fake",
    location="package:nowhere/model",
    revision="sha256:0123",
    task="text-to-image",
    pipeline="StableDiffusionPipeline",
    dtype="float32",
    keywords={"num_inference_steps": 20, "guidance_scale": 7.5, "negative_prompt": None},
    defaults_source="a test",
    scheduler="DDIMScheduler",
    schedulers=("DDIMScheduler",),
    size_multiple=8,
    guidance_embedded=False,
    diffusers="0",
)


def small_study(
    name: str = "small",
    seeds: int = 3,
    score_text: str = "a bright picture",
    guidance: tuple[float, ...] = (0.5, 1, 3, 5),
    search: SearchSpec | None = None,
) -> Study:
    """A grid of guidance × negative prompt with twins in it: 4 × 2 cells, 5 candidates."""
    return Study(
        name=name,
        token="0",
        model=MODEL,
        scorer=ScorerDescription(name="clip_score", model="fake", location="", revision="1"),
        inputs=(PinnedInput(prompt="a picture", score_text=score_text),),
        seeds=tuple(range(seeds)),
        settings={"num_inference_steps": 4, "scheduler": "DDIMScheduler", "width": 8, "height": 8},
        space=Space(
            axes={
                "guidance_scale": Choices(values=guidance),
                "negative_prompt": Choices(values=("", "cartoon")),
            }
        ),
        search=search or SearchSpec.model_validate({}),
        objective="clip_score",
        comet=CometSpec.model_validate({"mode": "off"}),
    )


def fake_worker(batch: int = 2, fails: dict[str, Failed] | None = None) -> Worker:
    """A worker over fakes; `fails` maps image_id → failure."""
    failures = fails or {}

    def fail(request: ImageRequest) -> Failed | None:
        return failures.get(request.image_id)

    return Worker(FakePipeline(batch, fail), {"clip_score": BrightnessScorer()}, "fake device", batch=4)


def requests_of(study: Study) -> list[ImageRequest]:
    """Every distinct request of a study's whole lattice."""
    found: dict[str, ImageRequest] = {}
    for settings in study.space.lattice():
        for instance in study.instances:
            request = study.request(settings, instance)
            found.setdefault(request.image_id, request)
    return list(found.values())


def grid(study: Study, past: Sequence[PastTrial] = (), kind: type[Grid] = Grid) -> Grid:
    """The grid over a study's lattice, without the model's own settings."""
    trials = Trials(study.judge, study.objective, past)
    return kind(trials, study.space.lattice(), len(study.instances))
