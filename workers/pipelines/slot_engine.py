"""The slot engine: requests of unlike settings share every UNet call.

Each request is one plain diffusers call, with a scheduler and a generator of its own, running in a greenlet. At
every tick the engine collects the UNet inputs of all running calls into one batch, calls the UNet once, and hands
each call its rows. So a picture is what the plain pipeline draws, whatever shared its batches, and a call that ends
makes room for the next at once.
"""

import copy
import functools
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import greenlet
import torch
from PIL import Image

from search_spaces.models import ModelDescription
from search_spaces.requests import Failed, ImageRequest
from search_spaces.space import effective_steps, guidance_is_on
from workers.pipelines import HOLDS_NAN, OUT_OF_MEMORY, Generated, Inputs
from workers.pipelines.capacity import fastest_rows
from workers.pipelines.looking import watch
from workers.pipelines.rows import Rows
from workers.pipelines.shared_models import (
    Call,
    DecodeCall,
    LookCall,
    Remembered,
    SharedProcessor,
    SharedUNet,
    SharedVae,
    UNetCall,
    content,
    remembered_prompts,
)
from workers.pipelines.shared_rows import SharedRows
from workers.pipelines.whole_call import (
    SchedulerKey,
    call_arguments,
    checked,
    first_line,
    made_scheduler,
    scheduler_key,
)

DECODED_TOGETHER = 8
SCHEDULERS = 64
PATIENCE_SECONDS = 1.0

SET_ASIDE = 128
"""Requests kept after an early look: of SDXL at 1024² one takes about 1.5 MB."""

COMPILED_BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock")
"""Compiled one by one, each kind and shape once: that takes less long than the UNet as a whole."""

COMPILED_SHAPES = 64
"""Shapes of one kind of block that a UNet may have before torch gives up compiling."""


@dataclass(eq=False)
class _Run:
    """One request under way: a plain call in its greenlet, and what that waits for."""

    request: ImageRequest
    thread: greenlet.greenlet = field(default_factory=greenlet.greenlet)
    asks: Call | None = None
    unet_calls: int = 0
    seconds: float = 0.0
    rows_before: int = 0  # the engine's, before this call ran out of memory by itself
    text: torch.Tensor | None = None
    text_names: Sequence[Hashable] = ()  # equal for rows of equal text

    def names_of_text(self, text: torch.Tensor) -> Sequence[Hashable]:
        """What each row of an embedded text holds; a call uses the same one to its end."""
        if self.text is not text:
            self.text, self.text_names = text, [content(row) for row in text]
        return self.text_names


@dataclass(frozen=True)
class _OutOfMemory:
    """How a call ends that ran out of memory in what it does by itself: encoding texts and images, stepping."""

    reason: str


@dataclass
class Usage:
    """What the engine's ticks were used for: `useful` of `offered` rows in `ticks` UNet calls."""

    ticks: int = 0
    useful: int = 0
    offered: int = 0


class SlotEngine:
    """The seam `Pipeline` over the Stable Diffusion families: up to `rows` UNet rows per tick.

    A request takes two rows with guidance and one without. `set_aside` bounds the requests that were looked at
    and wait to be resumed. Where memory runs out, the rows are halved and what was in flight goes on, and the
    next result says so. Requests under way or set aside keep the engine and its model in memory: cancel them
    before letting go of it.
    """

    def __init__(
        self,
        pipeline: Any,
        model: ModelDescription,
        inputs: Inputs,
        rows: int,
        set_aside: int = SET_ASIDE,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._pipeline, self._model, self._inputs = pipeline, model, inputs
        self._rows: Rows[_Run] = Rows(rows)
        self._compiled = False
        self._padded, self._patience, self._set_aside = False, patience, set_aside
        self._vae = SharedVae(pipeline.vae)
        self._shared = _shared_attributes(pipeline, self._vae)
        # Not the UNet's own device: an offloaded one waits in main memory and computes on the GPU.
        self._on_cpu = pipeline._execution_device.type == "cpu"
        # On a GPU, where the layers that skip rows take little of the time, nobody has measured it.
        self._shared_rows = SharedRows(pipeline.unet) if self._on_cpu else None
        self._schedulers = Remembered(SCHEDULERS)
        self._aside: OrderedDict[str, _Run] = OrderedDict()
        self._to_decode: list[_Run] = []
        self._finished: list[Generated] = []
        self._notes: list[str] = []
        self.usage = Usage()

    @property
    def steps(self) -> int:
        """UNet calls so far, and blocks compiled for them: compiling takes minutes in which no call ends."""
        compiled = torch._dynamo.utils.counters["frames"]["total"] if self._compiled else 0
        return int(self.usage.ticks + compiled)

    @property
    def rows(self) -> int:
        """UNet rows per tick; set to another number, it holds from the next tick on."""
        return self._rows.capacity

    @rows.setter
    def rows(self, rows: int) -> None:
        if rows < 1:
            raise ValueError(f"{rows} rows are below 1")
        self._rows.capacity = rows

    def advance(self, new: Sequence[ImageRequest], cancelled: Collection[str] = ()) -> Sequence[Generated]:
        """Tick until something is finished or `patience` seconds are over, once at least; what runs on stays.

        All calls must come from one thread, to which the running requests are bound.
        """
        with torch.inference_mode():
            self._cancel(cancelled)
            for request in new:
                if request.image_id not in cancelled:
                    self._take(request)
            deadline = time.perf_counter() + self._patience
            while not self._finished and self._is_busy:
                self._tick()
                if time.perf_counter() >= deadline:
                    break
            if not self._finished:
                self._decode()
        finished, self._finished = self._finished, []
        return finished

    def compile(self) -> None:
        """Compile the UNet's blocks with the next call; from then on every batch is padded to `rows` rows."""
        self._padded, self._shared_rows = True, None  # shapes that never change
        self._compiled = True
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_SHAPES)
        for module in self._pipeline.unet.modules():
            if type(module).__name__ in COMPILED_BLOCKS:
                module.compile(dynamic=False)

    def fastest_rows(self, example: ImageRequest) -> int:
        """The rows per call that this device is fastest with, measured on the UNet inputs of an example.

        Raises ValueError where the example cannot be drawn.
        """
        with self._bare_call(example) as call:
            # On a CPU by the time that this process had: others on the machine would spoil what is remembered.
            threads = torch.get_num_threads()
            return fastest_rows(
                call, (lambda: time.process_time() / threads) if self._on_cpu else time.perf_counter
            )

    def bare_rate(self, example: ImageRequest, seconds: float) -> float:
        """Rows per second of nothing but the UNet, called over and over with `rows` rows of an example.

        The most that the engine could reach. Raises ValueError where the example cannot be drawn.
        """
        with self._bare_call(example) as call:
            call(self.rows)
            begun, calls = time.perf_counter(), 0
            while time.perf_counter() - begun < seconds:
                call(self.rows)
                calls += 1
            return calls * self.rows / (time.perf_counter() - begun)

    @contextmanager
    def _bare_call(self, example: ImageRequest) -> Iterator[Callable[[int], None]]:
        """A function that calls the UNet on so many copies of an example's first row."""
        with torch.inference_mode():
            run = self._made_ready(_Run(example))
            asks = run.thread.switch()
            if not isinstance(asks, UNetCall):
                raise ValueError(f"the example gives no UNet call but {asks}")
            one = UNetCall(asks.sample[:1], asks.timestep, _first_row(asks.keywords))

            def call(rows: int) -> None:
                sample, times, keywords = _stacked_calls([one] * rows, 0)
                self._pipeline.unet(sample, times, **keywords, return_dict=False)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()

            try:
                yield call
            finally:
                self._end(run)

    @property
    def _is_busy(self) -> bool:
        return bool(self._rows.live or self._rows.waiting or self._to_decode)

    def _take(self, request: ImageRequest) -> None:
        run = self._aside.pop(request.image_id, None) or self._made_ready(_Run(request))
        run.request = request
        self._wait_for_rows(run)

    def _made_ready(self, run: _Run) -> _Run:
        """A run at the beginning of its call."""
        run.thread, run.asks, run.unet_calls = greenlet.greenlet(), None, 0
        run.thread.run = functools.partial(self._draw, run)
        return run

    def _wait_for_rows(self, run: _Run) -> None:
        rows = 2 if guidance_is_on(run.request.settings, self._model) else 1
        self._rows.add(run, rows, _length(run.request, self._model) - run.unet_calls)

    def _cancel(self, cancelled: Collection[str]) -> None:
        if not cancelled:
            return
        for run in [*self._rows.live, *self._rows.waiting, *self._to_decode]:
            if run.request.image_id in cancelled:
                self._rows.remove(run)
                self._end(run)
        self._to_decode = [run for run in self._to_decode if run.request.image_id not in cancelled]
        for image_id in cancelled:
            if image_id in self._aside:
                self._end(self._aside.pop(image_id))

    def _end(self, run: _Run) -> None:
        """Unwind a call that is not to go on."""
        if run.thread:
            run.thread.throw(greenlet.GreenletExit)

    def _tick(self) -> None:
        """Admit what fits, make one UNet call over all rows, decode what is ready."""
        while True:  # one that fails at once, or has nothing to run, frees its rows
            self._rows.admit()
            # Those just admitted, and those that a Ctrl-C in another's beginning kept from their own.
            to_begin = [run for run in self._rows.live if not isinstance(run.asks, UNetCall)]
            if not to_begin:
                break
            for run in to_begin:
                self._resume(run)
        calls = [(run, run.asks) for run in self._rows.live if isinstance(run.asks, UNetCall)]
        for batch in _alike(calls):
            self._call_unet(batch)
        if calls:
            self._rows.tick()
            self.usage.ticks += 1
            self.usage.offered += self._rows.capacity
        nothing_runs = not self._rows.live and not self._rows.waiting
        if len(self._to_decode) >= DECODED_TOGETHER or nothing_runs:
            self._decode()

    def _resume(self, run: _Run, answer: Any = None) -> None:
        """Let a call go on until it asks for something or ends."""
        begun = time.perf_counter()
        try:
            outcome = run.thread.switch() if run.asks is None else run.thread.switch(answer)
        except BaseException:  # a Ctrl-C within the call has ended it
            self._rows.remove(run)
            raise
        run.seconds += time.perf_counter() - begun
        self._heed(run, outcome)

    def _refuse(self, run: _Run, reason: str, infeasible: bool = False) -> None:
        """Let a call end with a reason in place of an answer."""
        failed = Failed("infeasible" if infeasible else "lost", reason)
        self._heed(run, run.thread.throw(_EndedError(failed)))

    def _heed(self, run: _Run, outcome: Call | Image.Image | Failed | _OutOfMemory) -> None:
        if isinstance(outcome, UNetCall):
            run.asks = outcome
            return
        if isinstance(outcome, _OutOfMemory):
            self._begin_again(run, outcome.reason)
            return
        self._rows.remove(run)
        if isinstance(outcome, DecodeCall | LookCall):
            run.asks = outcome
            self._to_decode.append(run)
            return
        calls = run.unet_calls if isinstance(outcome, Image.Image) else None
        self._give_back(run, outcome, calls)

    def _begin_again(self, run: _Run, reason: str) -> None:
        """Draw a call that ran out of memory by itself, as it encoded, anew beside half of the rows.

        Alone it is lost; and since halving was no help then, the rows are as many as before.
        """
        rows = self._rows.used
        self._rows.remove(run)
        if self._rows.live and self._rows.capacity > 1:
            run.rows_before = run.rows_before or self._rows.capacity
            if rows <= self._rows.capacity:  # else it was admitted before another had them halved
                self._halve(rows)
            self._wait_for_rows(self._made_ready(run))
            return
        if run.rows_before > self._rows.capacity:
            self._rows.capacity = run.rows_before
            self._notes.append(f"{run.rows_before} UNet rows at a time again: fewer did not help")
        self._give_back(run, Failed("lost", reason), None)

    def _give_back(
        self, run: _Run, picture: Image.Image | Failed, calls: int | None, after: int | None = None
    ) -> None:
        notes, self._notes = tuple(self._notes), []
        self._finished.append(Generated(run.request, picture, run.seconds, calls, after, notes))

    def _call_unet(self, batch: Sequence[tuple[_Run, UNetCall]]) -> None:
        """One UNet call, or as few as hold `rows` rows each, for runs whose tensors can stand side by side."""
        while batch:
            part = _as_many_as_fit(batch, self._rows.capacity)
            begun, problem, halve, tried = time.perf_counter(), None, False, 0
            try:
                noise = self._unet(part)
            except torch.OutOfMemoryError as error:
                rows = sum(len(call.sample) for _, call in part)
                tried = max(rows, self._rows.capacity) if self._padded else rows
                problem, halve = _reason(error), len(part) > 1 or tried > rows
            except Exception as error:  # noqa: BLE001  # whatever a model raises is its requests' failure
                problem = _reason(error)
            # Not within `except`, where the exception would keep the failed call's tensors alive.
            if halve:
                self._halve(tried)
                continue
            batch = batch[len(part) :]
            if problem is None:
                self._answer(part, noise, time.perf_counter() - begun)
            elif len(part) > 1:  # each alone, so that only the guilty one is lost
                for pair in part:
                    self._call_unet([pair])
            else:
                self._refuse(part[0][0], problem)

    def _answer(self, part: Sequence[tuple[_Run, UNetCall]], noise: torch.Tensor, seconds: float) -> None:
        """Hand each run its rows of the UNet's answer."""
        start, share = 0, seconds / len(noise)
        for run, call in part:
            rows = len(call.sample)
            run.unet_calls += 1
            run.seconds += share * rows
            self._resume(run, noise[start : start + rows])
            start += rows

    def _unet(self, part: Sequence[tuple[_Run, UNetCall]]) -> torch.Tensor:
        """The UNet's answer for all calls' rows, in their order."""
        rows = sum(len(call.sample) for _, call in part)
        padding = max(0, self._rows.capacity - rows) if self._padded else 0
        sample, times, keywords = _stacked_calls([call for _, call in part], padding)
        with self._skipping(part):
            noise: torch.Tensor = self._pipeline.unet(sample, times, **keywords, return_dict=False)[0]
        self.usage.useful += rows
        return noise[:rows]

    def _skipping(self, part: Sequence[tuple[_Run, UNetCall]]) -> AbstractContextManager[None]:
        """Within it, layers of the UNet compute once what rows have in common."""
        if self._shared_rows is None:
            return nullcontext()
        samples: list[Hashable] = []
        texts: list[Hashable] = []
        for number, (run, call) in enumerate(part):
            alike = all(torch.equal(row, call.sample[0]) for row in call.sample[1:])
            samples += [(number, 0 if alike else row) for row in range(len(call.sample))]
            texts += run.names_of_text(call.keywords["encoder_hidden_states"])
        return self._shared_rows.within(samples, texts)

    def _halve(self, rows: int) -> None:
        """Half of the rows that did not fit from now on."""
        torch.cuda.empty_cache()
        self._rows.capacity = max(1, rows // 2)
        self._notes.append(f"out of memory: {self._rows.capacity} UNet rows at a time from here on")

    def _decode(self) -> None:
        """Decode everything that is ready, alike latents together; looks are set aside, the others go on."""
        by_shape: dict[Hashable, list[_Run]] = defaultdict(list)
        for run in self._to_decode:
            assert isinstance(run.asks, DecodeCall | LookCall)
            by_shape[run.asks.latents.shape[1:], run.asks.latents.dtype].append(run)
        for runs in by_shape.values():
            for start in range(0, len(runs), DECODED_TOGETHER):
                self._decode_alike(runs[start : start + DECODED_TOGETHER])

    def _decode_alike(self, runs: Sequence[_Run]) -> None:
        latents = [run.asks.latents for run in runs if isinstance(run.asks, DecodeCall | LookCall)]
        begun, problem = time.perf_counter(), None
        try:
            images = self._vae.decode_now(torch.cat(latents))
        except Exception as error:  # noqa: BLE001  # whatever a model raises is its requests' failure
            problem = _reason(error)
        if problem is not None and len(runs) > 1:
            torch.cuda.empty_cache()
            for run in runs:
                self._decode_alike([run])
            return
        share, start = (time.perf_counter() - begun) / len(runs), 0
        for run, each in zip(runs, latents, strict=True):
            self._to_decode.remove(run)
            run.seconds += share
            if problem is not None:
                self._refuse(run, problem)
                continue
            image, start = images[start : start + len(each)], start + len(each)
            if isinstance(run.asks, LookCall):
                self._show(run, run.asks.after, image)
            elif not torch.isfinite(image).all():  # seen here, since some pipelines paste over it
                self._refuse(run, HOLDS_NAN, infeasible=True)
            else:
                self._resume(run, image)

    def _show(self, run: _Run, after: int, image: torch.Tensor) -> None:
        """Give back what a call predicts, and keep the call so that it may go on.

        Where that is no picture, the call goes on at once: whether its end is one, only its end can tell.
        """
        picture = checked(
            self._pipeline.image_processor.postprocess(image, output_type="np")[0], flagged=False
        )
        if isinstance(picture, Failed):
            self._wait_for_rows(run)
            return
        self._give_back(run, picture, run.unet_calls, after)
        if run.request.image_id in self._aside:
            self._end(self._aside.pop(run.request.image_id))
        self._aside[run.request.image_id] = run
        if len(self._aside) > self._set_aside:
            _, oldest = self._aside.popitem(last=False)
            self._end(oldest)

    def _draw(self, run: _Run) -> Image.Image | Failed | _OutOfMemory:
        """The body of a run: one plain call on a pipeline whose heavy parts are shared."""
        request = run.request
        try:
            scheduler = self._scheduler(scheduler_key(request, self._model))
            pipeline = copy.copy(self._pipeline)
            # Past the pipeline's own __setattr__, which would write every assignment into its configuration.
            vars(pipeline).update(self._shared, scheduler=scheduler)
            if request.stop_after is not None:
                watch(scheduler, lambda: run.request.stop_after, self._decodable)
            result = pipeline(**call_arguments([request], self._model, self._inputs))
        except _EndedError as error:
            return error.failed
        except torch.OutOfMemoryError as error:
            return _OutOfMemory(_reason(error))
        except Exception as error:  # noqa: BLE001  # whatever a pipeline raises is one request's failure
            return Failed("lost", _reason(error))
        flagged = getattr(result, "nsfw_content_detected", None) or [False]
        if not len(result.images):
            return Failed("lost", "the pipeline gave no picture")
        return checked(result.images[0], bool(flagged[0]))

    def _scheduler(self, key: SchedulerKey) -> Any:
        """A scheduler for one call; some take 0.2 s to make, and none to copy."""
        made = self._schedulers.get(key, lambda: made_scheduler(key, self._pipeline.scheduler.config))
        return copy.deepcopy(made)

    def _decodable(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the model's own pipeline scales and casts them before it decodes."""
        config = self._pipeline.vae.config
        factor, mean, std = (
            float(config["scaling_factor"]),
            config.get("latents_mean"),
            config.get("latents_std"),
        )
        if not hasattr(self._pipeline, "upcast_vae"):  # SDXL's pipelines have it, and the statistics
            return latents / factor
        if latents.dtype == torch.float16 and config["force_upcast"]:
            latents = latents.float()
        if mean is None or std is None:
            return latents / factor
        shift, scale = (torch.tensor(each).view(1, -1, 1, 1).to(latents) for each in (mean, std))
        return latents * scale / factor + shift


class _EndedError(Exception):
    """Thrown into a call whose question has no answer; `failed` says why."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.reason)
        self.failed = failed


def _reason(error: Exception) -> str:
    kind = OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else type(error).__name__
    return f"{kind}: {first_line(error)}"


def _shared_attributes(pipeline: Any, vae: SharedVae) -> dict[str, Any]:
    """What takes the place of a pipeline's own parts in every run's copy of it."""
    shared: dict[str, Any] = {
        "unet": SharedUNet(pipeline.unet),
        "vae": vae,
        "encode_prompt": remembered_prompts(pipeline.encode_prompt),
        "maybe_free_model_hooks": lambda: None,  # offloaded models serve the other runs still
    }
    for name in ("image_processor", "mask_processor"):
        if hasattr(pipeline, name):
            shared[name] = SharedProcessor(getattr(pipeline, name))
    return shared


def _length(request: ImageRequest, model: ModelDescription) -> int:
    """About how many UNet calls a request takes: only the order in which requests are admitted depends on it."""
    steps = effective_steps(request.settings, model) or request.settings.get("num_inference_steps")
    return steps if isinstance(steps, int) else 1


def _alike(calls: Iterable[tuple[_Run, UNetCall]]) -> list[list[tuple[_Run, UNetCall]]]:
    """Calls in groups whose tensors can stand side by side in one batch: those of one picture size."""
    groups: dict[Hashable, list[tuple[_Run, UNetCall]]] = defaultdict(list)
    for run, call in calls:
        groups[call.sample.dtype, _shape(call.sample), _shape(call.keywords)].append((run, call))
    return list(groups.values())


def _shape(value: Any) -> Hashable:
    """What has to agree: the shapes of tensors but for their rows, everything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.shape[1:]
    if isinstance(value, dict):
        return tuple((name, _shape(item)) for name, item in sorted(value.items()))
    return repr(value)


def _first_row(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value[:1]
    return {name: _first_row(item) for name, item in value.items()} if isinstance(value, dict) else value


def _stacked(keywords: Sequence[Any], padding: int) -> Any:
    """Keyword values of alike calls as one call's: tensors row under row, the first row repeated as padding."""
    first = keywords[0]
    if isinstance(first, torch.Tensor):
        return torch.cat([*keywords, *[first[:1]] * padding])
    if isinstance(first, dict):
        return {name: _stacked([each[name] for each in keywords], padding) for name in first}
    return first


def _stacked_calls(
    calls: Sequence[UNetCall], padding: int
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """What the UNet takes for all calls' rows: samples, a timestep for each row, keywords."""
    sample, timestep = calls[0].sample, calls[0].timestep
    samples = [call.sample for call in calls] + [sample[:1]] * padding
    times = [call.timestep.reshape(1).float().expand(len(call.sample)) for call in calls]
    times += [timestep.reshape(1).float()] * padding
    return torch.cat(samples), torch.cat(times), _stacked([call.keywords for call in calls], padding)


def _as_many_as_fit(batch: Sequence[tuple[_Run, UNetCall]], capacity: int) -> Sequence[tuple[_Run, UNetCall]]:
    """The longest beginning of a batch with at most `capacity` rows; the first call alone where that has more."""
    rows = 0
    for count, (_, call) in enumerate(batch):
        rows += len(call.sample)
        if count and rows > capacity:
            return batch[:count]
    return batch
