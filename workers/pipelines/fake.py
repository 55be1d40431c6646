"""An honest fake: flat pictures whose colour depends on the request, made without a model."""

from collections import deque
from collections.abc import Callable, Collection, Sequence

from PIL import Image

from search_spaces.requests import Failed, ImageRequest
from workers.pipelines import Generated


class FakePipeline:
    """Gives back at most `batch` requests a call, in order; `fails` may refuse a request with a reason.

    An early look shows the very picture that the request ends with.
    """

    def __init__(
        self, batch: int = 4, fails: Callable[[ImageRequest], Failed | None] = lambda _: None
    ) -> None:
        self._queue: deque[ImageRequest] = deque()
        self._batch = batch
        self._fails = fails
        self.made: list[str] = []
        self.looked: list[str] = []

    @property
    def steps(self) -> int:
        """Pictures so far, finished or looked at."""
        return len(self.made) + len(self.looked)

    def advance(self, new: Sequence[ImageRequest], cancelled: Collection[str] = ()) -> Sequence[Generated]:
        """Draw up to `batch` flat pictures."""
        self._queue.extend(new)
        self._queue = deque(request for request in self._queue if request.image_id not in cancelled)
        batch = [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]
        return [self._draw(request) for request in batch]

    def _draw(self, request: ImageRequest) -> Generated:
        colour = tuple(bytes.fromhex(request.image_id[:6]))
        picture = self._fails(request) or Image.new("RGB", (8, 8), colour)
        steps, after = request.settings.get("num_inference_steps"), request.stop_after
        calls = steps if isinstance(steps, int) else None
        if after is None or isinstance(picture, Failed) or (calls is not None and after >= calls):
            self.made.append(request.image_id)
            return Generated(request, picture, seconds=0.0, unet_calls=calls)
        self.looked.append(request.image_id)
        return Generated(request, picture, seconds=0.0, unet_calls=after, after=after)
