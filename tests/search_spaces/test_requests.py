import json
import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.requests import Scored, canonical, content_hash
from tests.search_spaces.examples import law

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
documents = st.dictionaries(st.text(), values, max_size=5)


@given(documents, st.randoms(use_true_random=False))
@law
def test_the_order_of_keys_does_not_matter(document: dict[str, object], chance: random.Random) -> None:
    shuffled = sorted(document.items(), key=lambda _: chance.random())
    assert content_hash(dict(shuffled)) == content_hash(document)


@given(documents)
@law
def test_a_document_read_back_from_json_is_the_same(document: dict[str, object]) -> None:
    assert content_hash(json.loads(json.dumps(document))) == content_hash(document)


@given(documents)
@law
def test_canonical_forms_are_their_own(document: dict[str, object]) -> None:
    once = canonical(document)
    assert canonical(once) == once


@given(documents, documents)
@law
def test_different_documents_have_different_hashes(a: dict[str, object], b: dict[str, object]) -> None:
    def typed(value: object) -> object:  # as Python's == is, but that True is not 1
        if isinstance(value, dict):
            return {key: typed(item) for key, item in value.items()}
        return [typed(item) for item in value] if isinstance(value, list) else (type(value) is bool, value)

    assert (content_hash(a) == content_hash(b)) == (typed(a) == typed(b))


@given(st.integers(-(2**53), 2**53))
@law
def test_a_whole_float_is_the_integer(number: int) -> None:
    assert content_hash({"x": number}) == content_hash({"x": float(number)})


def test_seven_is_seven() -> None:
    assert content_hash({"guidance_scale": 7}) == content_hash({"guidance_scale": 7.0})
    assert content_hash({"guidance_scale": 7}) != content_hash({"guidance_scale": 7.5})
    assert content_hash({"eta": -0.0}) == content_hash({"eta": 0})


@pytest.mark.parametrize(
    ("one", "other"),
    [(True, 1), (False, 0), (None, ""), (None, "null"), (7, "7"), (True, "true"), ("", " "), ([], None)],
)
def test_values_of_different_types_are_kept_apart(one: object, other: object) -> None:
    assert content_hash({"x": one}) != content_hash({"x": other})


def test_a_missing_key_is_not_none() -> None:
    assert content_hash({}) != content_hash({"x": None})


def test_unicode_normal_forms_are_kept_apart() -> None:
    composed = "caf\u00e9"
    decomposed = unicodedata.normalize("NFD", composed)
    assert composed != decomposed
    assert content_hash({"prompt": composed}) != content_hash({"prompt": decomposed})
    assert canonical(decomposed) == decomposed


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_has_no_identity(bad: float) -> None:
    for document in ({"x": bad}, {"x": [1, bad]}, {"x": {"y": bad}}):
        with pytest.raises(ValueError, match="finite"):
            content_hash(document)


def test_the_hash_is_32_hexadecimal_digits_and_stays_what_it_is() -> None:
    # image_ids of old catalogs rest on this figure: a change here makes every image anew.
    assert content_hash({"a": 1, "b": ["é", 7.5, None, True]}) == "a9dc393ca390d3a97be571732377112f"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_score_is_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="clip_score"):
        Scored({"clip_score": bad})
    with pytest.raises(ValueError, match="finite"):
        Scored({"good": 1.0, "bad": bad})


def test_finite_scores_are_kept() -> None:
    assert Scored({"clip_score": -3.5}).scores == {"clip_score": -3.5}
