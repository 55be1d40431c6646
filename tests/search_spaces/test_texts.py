import itertools

from hypothesis import given
from hypothesis import strategies as st

from search_spaces.texts import as_read, one_spelling, twins
from tests.search_spaces.examples import law


def read(text: str) -> tuple[str, ...]:
    """A model that reads four words, in any case."""
    return tuple(text.lower().split()[:4])


texts = st.lists(st.lists(st.sampled_from(["a", "A", " ", "b", ""]), max_size=4).map("".join), max_size=8)


@given(texts, texts)
@law
def test_texts_that_are_read_alike_have_one_spelling_for_ever(first: list[str], later: list[str]) -> None:
    begun = one_spelling(first, read)
    gone_on = one_spelling([*later, *first], read, begun)
    assert gone_on.items() >= begun.items(), "a later session has the same identities"
    for one, two in itertools.product(gone_on, repeat=2):
        assert (gone_on[one] == gone_on[two]) == (read(one) == read(two))
    for spelling in gone_on.values():
        assert gone_on.get(spelling, spelling) == spelling
        assert spelling == "" or read(spelling)


def test_of_a_second_text_none_is_another_thing_than_spaces() -> None:
    spelled = one_spelling(["", " ", "Dog", "dog"], read)
    assert spelled == {"": "", " ": "", "Dog": "Dog", "dog": "Dog"}
    assert as_read("negative_prompt", " ", spelled) == ""
    assert as_read("negative_prompt_2", " ", spelled) == " "
    assert as_read("negative_prompt_2", "dog", spelled) == "Dog"
    assert as_read("scheduler", "dog", spelled) == "dog"
    assert as_read("negative_prompt", None, spelled) is None


def test_twins_are_named_by_what_they_are_read_as() -> None:
    found = ["cat", "CAT", "a dog", "", " ", "Cat", "cAt", "caT"]
    named = twins(one_spelling(found, read), found)
    assert named == ["'CAT', 'Cat', 'cAt' and 1 more as 'cat'", "' ' as ''"]
