"""Different values are written differently, and so that all of what differs can be seen."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.report.values import Wording, plain_text, settings_text, shorten, value_text, value_texts

LONG = "a very long prompt, oil on canvas, " * 8

# texts that are alike: few characters, much white space, all that is invisible, numbers and words that mean others
alike = st.text(alphabet="aA1 .\"'\\n\n\t\u00a0\u200b\u202e\u0301e\u00e9\ufe0f", max_size=8)
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(0, 3).map(lambda n: 0.3 + n * 1e-12),
    st.text(),
    alike,
    st.sampled_from(
        ["none", "None", "", "5", "5.0", "true", "True", '""', '"5"', "'a'", "1e3", "nan", "\\n"]
    ),
    st.tuples(st.sampled_from([LONG, LONG[:40], ""]), alike, st.sampled_from([LONG, LONG[:40], ""])).map(
        "".join
    ),
)


def same(one: object, other: object) -> bool:
    """Whether two values are one: 7 and 7.0 are, 1 and true are not."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


class TestValues:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (5, "5"),
            (5.0, "5"),
            (7.5, "7.5"),
            (7.3829123, "7.38291"),
            (1e-5, "1e-05"),
            (1e300, "1e+300"),
            (None, "none"),
            ("none", '"none"'),
            ("NULL", '"NULL"'),
            (True, "True"),
            ("true", '"true"'),
            ("5", '"5"'),
            ("1e3", '"1e3"'),
            ("", '""'),
            ('""', '"\\"\\""'),
            (" ", '" "'),
            (" cat", '" cat"'),
            ("cat ", '"cat "'),
            ("a  cat", '"a  cat"'),
            ("a cat", "a cat"),
            ("two\nlines", '"two\\nlines"'),
            ("two\\nlines", "two\\nlines"),
            ("\u202ereversed", '"\\u202ereversed"'),
            ("no\u00a0break", '"no\\xa0break"'),
            ("caf\u00e9", "caf\u00e9"),
            ("cafe\u0301", '"cafe\\u0301"'),
            ("\u2764\ufe0f", '"\u2764\\ufe0f"'),
            ("it's", "it's"),
            ('a "cat" sat', 'a "cat" sat'),
        ],
    )
    def test_value(self, value: object, text: str) -> None:
        assert value_text(value) == text

    @given(st.lists(values, max_size=8), st.integers(3, 60))
    @example([LONG + "x" + LONG, LONG + "y" + LONG, LONG + LONG], 30)
    @example(["a" * 29 + "…" + "a" * 30, "a" * 200, "a" * 201], 60)
    @example([0.3, 0.1 + 0.2, "0.3"], 60)
    @example([1, True, "1", 1.0], 60)
    @example(["e\u0301", "\u00e9", "e"], 60)
    def test_different_values_are_written_differently_and_equal_ones_alike(
        self, found: list[object], limit: int
    ) -> None:
        texts = value_texts(found, limit)
        assert len(texts) == len(found)
        for one, text in zip(found, texts, strict=True):
            for other, its in zip(found, texts, strict=True):
                if not same(one, other):
                    assert text != its, (one, other)
                elif isinstance(one, type(other)):
                    assert text == its, (one, other)

    @given(values)
    def test_all_of_a_value_can_be_seen(self, value: object) -> None:
        text = value_text(value, 10**6)
        assert text
        assert text == text.strip()
        assert text.isprintable()
        assert unicodedata.is_normalized("NFC", text)

    @given(values, st.integers(3, 60))
    def test_one_that_stands_alone_is_as_short_as_it_is_to_be(self, value: object, limit: int) -> None:
        if not isinstance(value, float):
            assert len(value_text(value, limit)) <= limit

    def test_long_texts_show_where_they_differ(self) -> None:
        texts = value_texts([LONG + middle + LONG for middle in ("blue cat", "red cat", "red car")])
        assert all(word in text for word, text in zip(("blue", "red cat", "red car"), texts, strict=True))
        assert all(len(text) <= 64 for text in texts)

    def test_what_nobody_takes_for_another_is_not_lengthened(self) -> None:
        short, *others = value_texts(["cartoon", LONG + "1", LONG + "2"])
        assert short == "cartoon"
        assert [text[-1] for text in others] == ["1", "2"]
        assert all(len(text) <= 60 for text in others)


class TestWording:
    def test_settings(self) -> None:
        found = settings_text({"g": 5.0, "p": "cartoon", "q": "", "r": None, "s": "it's", "t": "none"})
        assert found == 'g 5, p \'cartoon\', q "", r none, s "it\'s", t "none"'

    def test_an_axis_has_its_values_beside_each_other(self) -> None:
        wording = Wording(
            {"guidance_scale": [0.3, 0.1 + 0.2], "prompt": [LONG + "x" + LONG, LONG + "y" + LONG]}
        )
        assert wording.value("guidance_scale", 0.1 + 0.2) == "0.30000000000000004"
        assert wording.settings({"prompt": LONG + "x" + LONG}) != wording.settings(
            {"prompt": LONG + "y" + LONG}
        )

    def test_a_value_that_the_axis_does_not_list_stands_alone(self) -> None:
        assert Wording({"a": [1, 2]}).settings({"a": 3, "b": "cat"}) == "a 3, b 'cat'"

    @given(st.lists(st.lists(alike, max_size=3), max_size=4))
    def test_lists_of_texts_can_be_told_apart(self, lists: list[list[str]]) -> None:
        wording = Wording({"p": [text for each in lists for text in each]})
        written = [", ".join(wording.in_words("p", text) for text in each) for each in lists]
        assert len(set(written)) == len({tuple(each) for each in lists})


@given(st.text(), st.integers(3, 40))
def test_shortened_texts_fit_and_keep_both_ends(text: str, limit: int) -> None:
    found = shorten(plain_text(text), limit)
    assert len(found) <= limit
    assert found[:1] == plain_text(text)[:1]
    assert found[-1:] == plain_text(text)[-1:]
