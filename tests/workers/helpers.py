"""What the tests of this room share: requests, pictures, distances, sentences."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from search_spaces.errors import InputError
from search_spaces.models import ModelDescription
from search_spaces.requests import ImageRequest, Value, content_hash

SCHEDULER_NOISE = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]
"""diffusers 0.42's schedulers hand numpy 2 their torch tensors; it hurts nothing yet."""


def a_request(
    settings: Mapping[str, Value] | None = None,
    prompt: str = "a green dragon",
    seed: int = 0,
    image: str | None = None,
    mask: str | None = None,
    score_text: str | None = None,
) -> ImageRequest:
    """A request whose image_id hashes all of it but the score text."""
    settings = dict(settings or {})
    facts = {"settings": settings, "prompt": prompt, "seed": seed, "image": image, "mask": mask}
    return ImageRequest(
        content_hash(facts), settings, prompt, seed, image, mask, prompt if score_text is None else score_text
    )


def complete(model: ModelDescription, **changes: Value) -> dict[str, Value]:
    """A model's default settings, some of them changed."""
    return {**model.keywords, "scheduler": model.scheduler, **changes}


def farthest(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of any channel of any pixel, of 255."""
    assert (one.mode, one.size) == (other.mode, other.size)
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


@contextmanager
def refusal(*parts: str) -> Iterator[None]:
    """Expect an InputError of one sentence that holds all `parts`."""
    with pytest.raises(InputError) as caught:
        yield
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert all(part in sentence for part in parts), sentence
