"""Toyworld's tokenizer: CLIP's byte-pair encoding with a vocabulary of its own, in CLIPTokenizer's format."""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from workers.toyworld.scenes import random_scene
from workers.toyworld.training.data import reworded

VOCABULARY = 1024
"""Tokens, with the two that mark a text's start and end."""

LENGTH = 77
"""Tokens of a text at most, and what pipelines pad to."""

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"

# Words that people write in prompts and that no caption has: they get tokens, though the model knows no meaning.
_OTHER_WORDS = """
and or with near over under behind between sketch anime oil watercolor low high quality blurry sharp best worst
bad ugly deformed text extra lighting dramatic soft light dark bright colorful black brown pink small big large
tiny huge little old young man woman person people child face hand eye hair smile portrait landscape mountain
river lake forest castle bridge road train plane boat ship horse cow sheep lion bear wolf rabbit mouse snake
flower rose leaf garden cloud rain storm sunset sun space planet robot king queen monster ghost food apple
banana bread table chair bed lamp door wall floor roof kitchen market school summer spring morning evening day
wooden metal glass stone water fire ice smoke modern abstract digital render art trending
"""


def train_tokenizer(captions: int = 20_000) -> CLIPTokenizer:
    """Learn the vocabulary from the captions of the first scenes."""
    words = Counter(_OTHER_WORDS.split() * 40)
    for seed in range(captions):
        words.update(re.findall(r"[a-z]+|[^a-z\s]", reworded(random_scene(seed), 0).text))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + _WORD_END for letter in letters)]
    merges = _learn_merges(words, VOCABULARY - 2 - len(tokens))
    tokens += [first + second for first, second in merges] + [_START, _END]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = {token: index for index, token in enumerate(tokens)}
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
        lines = ["#version: 0.2", *(f"{first} {second}" for first, second in merges)]
        Path(folder, "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH)
    return tokenizer


def _learn_merges(words: Mapping[str, int], count: int) -> list[tuple[str, str]]:
    """Join the most frequent pair of neighbouring tokens, again and again; ties go to the first in the alphabet.

    The trainer of `tokenizers` breaks ties by chance, so two runs of it give two vocabularies.
    """
    parts = {word: [*word[:-1], word[-1] + _WORD_END] for word in words}
    merges: list[tuple[str, str]] = []
    made: set[str] = set()
    while len(merges) < count:
        pairs = Counter[tuple[str, str]]()
        for word, split in parts.items():
            for pair in pairwise(split):
                if pair[0] + pair[1] not in made:
                    pairs[pair] += words[word]
        if not pairs:
            raise ValueError(f"the words make {len(merges)} tokens, {count} are needed; give more words")
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        made.add(best[0] + best[1])
        for word, split in parts.items():
            parts[word] = _joined(split, best)
    return merges


def _joined(split: list[str], pair: tuple[str, str]) -> list[str]:
    """Join a pair of tokens wherever they are neighbours."""
    joined: list[str] = []
    for token in split:
        if joined and (joined[-1], token) == pair:
            joined[-1] += token
        else:
            joined.append(token)
    return joined
