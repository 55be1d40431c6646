"""What a model reads of a text: the tokens that its tokenizers give, as far as its text towers' windows go.

Tokenizers are small files beside the weights, which are not needed. Only pipelines whose way with texts was read in
diffusers' source are spoken for: what others do to a prompt before it is tokenised is not known here.
"""

import json
import logging
from collections.abc import Hashable, Sequence
from typing import Any

from search_spaces.models import ModelDescription, ScorerDescription
from workers.pipelines.loading import clip_folder, part_folder

MOST_TOKENS = 100_000
"""A window beyond which a tokenizer's configuration says in truth that it has none."""

TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
)

_log = logging.getLogger(__name__)


class TextReader:
    """A model's tokenizers, each called as its pipeline calls it."""

    def __init__(self, tokenizers: Sequence[Any]) -> None:
        """`tokenizers` are transformers'."""
        self._tokenizers = tokenizers
        self._whole: dict[str, list[list[int]]] = {}

    def tokens(self, text: str) -> Hashable:
        """The tokens of a text that reach the model: equal for texts that draw the same picture."""
        read = zip(self._tokenizers, self._all(text), strict=True)
        return tuple(tuple(self._within(each, text, ids)) for each, ids in read)

    def cut(self, text: str) -> tuple[int, int] | None:
        """(tokens, window) of a text that does not fit a text tower's window; None where all of it is read."""
        counted = zip(map(len, self._all(text)), map(_window, self._tokenizers), strict=True)
        return next(((tokens, window) for tokens, window in counted if window and tokens > window), None)

    def _all(self, text: str) -> list[list[int]]:
        """Each tokenizer's ids, with those of beginning and end, however many there are."""
        if text not in self._whole:
            self._whole[text] = [each(text, verbose=False)["input_ids"] for each in self._tokenizers]
        return self._whole[text]

    def _within(self, tokenizer: Any, text: str, ids: list[int]) -> list[int]:
        """The ids that the window holds, of which the last is that of the end."""
        window = _window(tokenizer)
        if window is None or len(ids) <= window:
            return ids
        cut: list[int] = tokenizer(text, truncation=True, max_length=window, verbose=False)["input_ids"]
        return cut


def _window(tokenizer: Any) -> int | None:
    """The tokens that a text tower reads, those of beginning and end among them."""
    window: int = tokenizer.model_max_length
    return window if window < MOST_TOKENS else None


def text_reader(model: ModelDescription) -> TextReader | None:
    """What reads a model's texts; None where its pipeline's way with them is not known, or no tokenizer loads."""
    import transformers

    found = []
    for part in model.family.tokenizers:
        try:
            kind, folder = part_folder(model, part, TOKENIZER_FILES)
            if kind is None:  # SDXL's refiner has its second tokenizer alone
                continue
            found.append(getattr(transformers, kind).from_pretrained(str(folder), local_files_only=True))
        except Exception as error:  # noqa: BLE001  # a worker says what is wrong with a model; texts stay as they are written
            _log.info("the %s of %s cannot be used: %s", part, model.name, error)
            return None
    return TextReader(found) if found else None


def judge_reader(scorer: ScorerDescription) -> TextReader | None:
    """What reads the texts that pictures are judged by; None where its tokenizer does not load."""
    import transformers

    try:
        folder = clip_folder(scorer, TOKENIZER_FILES)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tokenizer = transformers.CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        tokenizer.model_max_length = transformers.CLIPConfig(**config).text_config.max_position_embeddings
    except Exception as error:  # noqa: BLE001  # as above
        _log.info("the tokenizer of %s cannot be used: %s", scorer.model, error)
        return None
    return TextReader([tokenizer])
