"""What a plan says of Comet."""

import pytest

from orchestrator.comet_plan import images_for_comet, seconds_to_sync
from orchestrator.plan import Plan, plan_lines
from search_spaces.study import Study
from search_spaces.study_file import CometSpec, TopImages
from tests.orchestrator.studies import small_study


def studied(**comet: object) -> Study:
    return small_study().model_copy(update={"comet": CometSpec.model_validate({"mode": "offline", **comet})})


def lines(study: Study, images: int, trials: int) -> list[tuple[str, str]]:
    plan = Plan(study, 1, trials, images, images, None, None, None, {}, {}, ())
    return [
        line
        for line in plan_lines(plan)
        if line[0] == "Comet" or (line[0] == "note" and line[1].startswith("Comet"))
    ]


@pytest.mark.parametrize(
    ("rule", "sent"), [("all", 600), ("best_per_trial", 40), ({"top_k": 25}, 25), ({"top_k": 9000}, 600)]
)
def test_thinning(rule: object, sent: int) -> None:
    study = studied(images=rule)
    assert images_for_comet(study, 600, 40) == sent
    (line,) = lines(study, 600, 40)
    assert line[1].startswith(f"{sent} images" + ("" if rule == "all" else " of 600, by comet.images"))


def test_the_quotas_make_a_large_study_wait() -> None:
    assert seconds_to_sync(600, 40) == 0
    assert seconds_to_sync(9_000, 40) == 60
    assert seconds_to_sync(14_900, 40) == 3600  # its curves and facts are beyond an hour's submissions
    (line,) = lines(studied(), 50_000, 5_000)
    # 50,000 images and 20,030 other submissions are 4 whole hours and a minute of the fifth
    assert line[1] == (
        "50,000 images; by its quotas, 8,000 images a minute and 15,000 submissions an hour, "
        "at least 4 h 1 min for a sync"
    )
    (line,) = lines(studied(), 600, 40)
    assert line[1].endswith("no wait in a sync")


def test_more_images_than_comet_keeps_are_noted() -> None:
    line, note = lines(studied(), 250_000, 500)
    assert line[1].startswith("250,000 images; ")
    assert note == (
        "note",
        "Comet keeps 100,000 images of an experiment, and 250,000 may come; comet: {images: best_per_trial} or "
        "{images: {top_k: 100000}} sends fewer",
    )
    assert len(lines(studied(images=TopImages(top_k=100_000)), 250_000, 500)) == 1


def test_a_study_without_comet_says_nothing() -> None:
    assert lines(studied(mode="off"), 250_000, 500) == []
