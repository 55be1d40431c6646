"""CLIP score: 100 × cosine of a picture's and a text's CLIP embedding (Hessel et al. 2021, arXiv 2104.08718).

Unclamped, unlike torchmetrics' CLIPScore, since clamping at 0 would tie every bad setting.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from search_spaces.requests import ImageRequest

CACHED_TEXTS = 1024


class ClipScorer:
    """Scores by one CLIP model in float32.

    Weights that are pickles are read only where `use_safetensors` is None (transformers' from_pretrained).
    A text longer than the text tower's window is judged by what fits, its end token kept; `notes` says so.
    """

    def __init__(
        self,
        folder: str | Path,
        device: str = "cpu",
        revision: str | None = None,
        use_safetensors: bool | None = True,
    ) -> None:
        self._device = device
        self._model = (
            CLIPModel.from_pretrained(
                folder, revision=revision, dtype=torch.float32, use_safetensors=use_safetensors
            )
            .to(device)
            .eval()
        )
        # Pillow prepares the pictures, so that a machine with torchvision judges as one without.
        processor = CLIPProcessor.from_pretrained(folder, revision=revision, backend="pil")
        self._tokenizer, self._image_processor = processor.tokenizer, processor.image_processor
        self._window = self._model.config.text_config.max_position_embeddings
        self._texts: OrderedDict[str, torch.Tensor] = OrderedDict()

    def score(self, images: Sequence[Image.Image], requests: Sequence[ImageRequest]) -> Sequence[float]:
        """One value from -100 to 100 per image, against the `score_text` of its request."""
        return self.against(images, [request.score_text for request in requests])

    @torch.inference_mode()
    def against(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Sequence[float]:
        """One value from -100 to 100 per image, against a text each."""
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} images and {len(texts)} texts must be of one length")
        if not images:
            return []
        pixels = self._image_processor(images=list(images), return_tensors="pt")["pixel_values"].to(
            self._device
        )
        seen = self._model.visual_projection(self._model.vision_model(pixel_values=pixels).pooler_output)
        said = torch.stack([self._embed(text) for text in texts])
        cosines = torch.nn.functional.cosine_similarity(seen.float(), said, dim=-1)
        return [100.0 * value for value in cosines.tolist()]

    def notes(self, requests: Sequence[ImageRequest]) -> Sequence[str]:
        """A sentence for each distinct text that does not fit the window."""
        found = []
        for text in dict.fromkeys(request.score_text for request in requests):
            tokens = len(self._tokenizer(text, verbose=False)["input_ids"])
            if tokens > self._window:
                found.append(
                    f"the text {text[:40]!r}… has {tokens} tokens and CLIP reads {self._window}: "
                    "it is scored on what fits"
                )
        return found

    def _embed(self, text: str) -> torch.Tensor:
        """The text's embedding, float32 of shape (projection,), from a bounded cache."""
        if text not in self._texts:
            tokens = self._tokenizer(text, truncation=True, max_length=self._window, return_tensors="pt")
            pooled = self._model.text_model(**tokens.to(self._device)).pooler_output
            self._texts[text] = self._model.text_projection(pooled)[0].float()
            if len(self._texts) > CACHED_TEXTS:
                self._texts.popitem(last=False)
        self._texts.move_to_end(text)
        return self._texts[text]
