"""Which texts, inputs and seeds of a study file are one to its model: found and said before anything is drawn."""

from collections.abc import Callable, Sequence, Set
from contextlib import suppress

from orchestrator.catalog.tables import Tables
from search_spaces.errors import shown
from search_spaces.models import ModelDescription, ScorerDescription
from search_spaces.study import PinnedInput, Study, as_drawn, texts_of
from search_spaces.study_file import StudySpec
from search_spaces.texts import Texts, one_spelling, twins


def spellings(
    spec: StudySpec,
    model: ModelDescription,
    pinned: Study | None,
    stored: Callable[[], Set[str]],
    tell: Callable[[str], None],
) -> Texts | None:
    """The spelling that stands for each text; `tell` hears which are read as one, and which are cut.

    Those that a catalog has `stored` come first in a new study, so that their pictures are found. A study that was
    begun by a version which knew no tokens keeps each text as it is.
    """
    from workers.pipelines.reading import text_reader

    before = pinned.texts if pinned else None
    reader = text_reader(model)
    if reader is None:
        return before
    texts = texts_of(spec)
    prompts = [item.prompt for item in spec.inputs]
    cut = {text: too_long for text in texts if (too_long := reader.cut(text))}
    for what, among in (
        ("prompt", prompts),
        ("negative prompt", [text for text in texts if text not in prompts]),
    ):
        first = next((text for text in among if text in cut), None)
        if first is not None:
            (tokens, window), count = cut[first], sum(text in cut for text in among)
            tell(
                f"{count} of {len(among)} {what}s {'is' if count == 1 else 'are'} longer than the {window} tokens "
                f"that the text tower reads, and what is beyond is not drawn: {shown(first)} has {tokens}"
            )
    if pinned is not None and before is None:
        return None
    if pinned is None:
        chosen = one_spelling(_stored_first(texts, stored()), reader.tokens)
        found = {text: chosen[text] for text in texts}
    else:
        found = one_spelling(texts, reader.tokens, before)
    alike = twins(found, texts)
    if alike:
        tell(f"the model's tokenizer reads {'; '.join(alike)}: they draw the same pictures")
    return found


def _stored_first(texts: Sequence[str], stored: Set[str]) -> list[str]:
    """Texts in the order in which their spellings are to stand for others: those that a catalog has come first."""
    wanted = {_loosely(text) for text in texts}
    near = sorted(text for text in stored if _loosely(text) in wanted)
    return [*(text for text in texts if text in stored), *near, *texts]


def _loosely(text: str) -> str:
    """Equal for most texts that a tokenizer may read alike, without asking it about all of a catalog."""
    return "".join(text.casefold().split())


def stored_texts(tables: Tables) -> Set[str]:
    """The prompts and negative prompts of a catalog; none where it cannot be asked now."""
    found: set[str] = set()
    with suppress(OSError):
        for column in ("prompt", "negative_prompt"):
            found |= {text for text in tables.counts("images", column) if text is not None}
    return found


def distinct_inputs(
    spec: StudySpec,
    inputs: Sequence[PinnedInput],
    texts: Texts,
    scorer: ScorerDescription,
    pinned: Study | None,
    tell: Callable[[str], None],
) -> Sequence[PinnedInput]:
    """The inputs without those that draw what an earlier one draws and are judged by the same text.

    Where every setting of the space has a prompt of its own, the inputs' prompts draw nothing. A study that was begun
    with such copies keeps them: a report sees that their pictures are the same.
    """
    if len(inputs) == 1 or (
        pinned and [_drawn(item) for item in pinned.inputs] == [_drawn(i) for i in inputs]
    ):
        return inputs
    from workers.pipelines.reading import judge_reader

    reader, prompts_are_read = judge_reader(scorer), not _replaces_prompts(spec)
    first: dict[object, int] = {}
    copies: dict[int, list[int]] = {}
    for number, item in enumerate(inputs):
        judged_by = reader.tokens(item.score_text) if reader else item.score_text
        prompt = texts.get(item.prompt, item.prompt) if prompts_are_read else None
        what = (item.image, item.mask, prompt, judged_by)
        earlier = first.setdefault(what, number)
        if earlier != number:
            copies.setdefault(earlier, []).append(number)
    for earlier, others in copies.items():
        named = ", ".join(f"inputs[{number}]" for number in others[:4]) + (", …" if len(others) > 4 else "")
        draws = "draws" if len(others) == 1 else "draw"
        tell(
            f"{named} {draws} the same pictures as inputs[{earlier}], to be judged by the same text: counted once"
        )
    return [inputs[number] for number in first.values()]


def _replaces_prompts(spec: StudySpec) -> bool:
    """Whether a study sweeps the prompt, in place of its inputs' prompts everywhere."""
    prompts = spec.space.get("prompt")
    return prompts is not None and not prompts.when


def _drawn(item: PinnedInput) -> tuple[str, str, str | None, str | None]:
    return item.prompt, item.score_text, item.image, item.mask


def with_distinct_seeds(spec: StudySpec, pinned: Study | None, tell: Callable[[str], None]) -> StudySpec:
    """A study file without seeds that draw the same noise as an earlier one; a study that was begun so keeps them."""
    seeds = spec.seed_list
    if max(seeds) == as_drawn(max(seeds)):
        return spec
    begun = pinned.seeds if pinned and seeds[: len(pinned.seeds)] == pinned.seeds else ()
    first: dict[int, int] = {}
    for seed in seeds:
        first.setdefault(as_drawn(seed), seed)
    copies = [seed for seed in seeds[len(begun) :] if first[as_drawn(seed)] != seed]
    if not copies:
        return spec
    tell(
        f"seed {copies[0]} draws the same noise as {first[as_drawn(copies[0])]}, since torch reads the lower 32 "
        f"bits of a seed: {'it counts' if len(copies) == 1 else f'{len(copies)} such seeds count'} once"
    )
    return spec.model_copy(update={"seeds": [seed for seed in seeds if seed not in copies]})
