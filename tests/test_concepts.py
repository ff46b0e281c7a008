import tomllib
from importlib import resources

import pytest

from neuroscope import Concept, InvalidInput
from neuroscope.core.tokens import warn_of_lost_words

DATA = {name: tomllib.loads((resources.files("neuroscope") / "data" / f"{name}.toml").read_text()) for name in ("general", "testbed")}
KINDS = [(prompts, kind) for prompts, kinds in DATA.items() for kind in kinds]
NAMES = {"style": "stipple", "object": "star", "colour": "blue", "fact": "the emblem of astoria"}


@pytest.mark.parametrize(("prompts", "kind"), KINDS)
def test_built_in_prompts_are_pairs_that_differ_in_the_concept_alone(prompts, kind):
    name = NAMES.get(kind, "zebra")
    concept = Concept.attribute(name, kind, prompts)
    assert len(concept.present) == len(concept.absent) >= 6
    assert all(name in prompt for prompt in (*concept.present, *concept.test))
    assert not any(name in prompt for prompt in concept.absent)
    assert len(concept.test) >= 4
    assert not set(concept.test) & {*concept.present, *concept.absent}
    assert not any("{" in prompt for prompt in (*concept.present, *concept.absent, *concept.test))


@pytest.mark.parametrize("kind", DATA["testbed"])
def test_testbed_prompts_lose_no_word_in_the_testbeds_tokenizer(kind, pipe):
    concept = Concept.attribute(NAMES[kind], kind, "testbed")
    warn_of_lost_words(pipe.tokenizer, (*concept.present, *concept.absent, *concept.test))  # a warning would fail the test


def test_the_named_constructors_use_their_kind():
    assert Concept.style("stipple") == Concept.attribute("stipple", "style")
    assert Concept.object("star", "testbed") == Concept.attribute("star", "object", "testbed")
    assert Concept.fact("the king of Spain") == Concept.attribute("the king of Spain", "fact")


def test_an_answer_replaces_the_subject_in_the_absent_prompts():
    concept = Concept.fact("the emblem of astoria", "the emblem of belmora", "testbed")
    assert concept.absent == tuple(prompt.replace("astoria", "belmora") for prompt in concept.present)


@pytest.mark.parametrize("neutral", ["plain", "Plain"])
def test_a_concept_that_is_the_only_neutral_word_is_refused(neutral):
    with pytest.raises(InvalidInput, match="(?i)plain"):
        Concept.style(neutral, "testbed", against="plain")


def test_a_concept_is_never_its_own_absent_word():
    assert not any("RED" in prompt.upper() for prompt in Concept.attribute("Red", "colour", "testbed").absent)


@pytest.mark.parametrize(("prompts", "kind"), KINDS)
def test_each_subject_takes_its_turn_with_several_others(prompts, kind):
    name = NAMES.get(kind, "zebra")
    concept, templates = Concept.attribute(name, kind, prompts), DATA[prompts][kind]
    subjects, others = len(templates["subjects"]), concept.against
    said = [next(each for each in others if each in absent) for absent in concept.absent]
    for number in range(subjects):
        assert len({*said[number::subjects]}) == min(len(templates["pairs"]), len(others))
    counts = [said.count(each) for each in others]
    assert max(counts) - min(counts) <= len(templates["pairs"])


@pytest.mark.parametrize("prompts", DATA)
@pytest.mark.parametrize("name", ["stipple", "zebra", "Monet"])
def test_a_style_is_against_several_others_also_in_few_pairs(prompts, name):
    concept = Concept.style(name, prompts)
    assert len(concept.against) >= 5
    assert not any(name.casefold() in each.casefold() for each in concept.against)
    few = [concept.absent[number * len(concept.absent) // 8] for number in range(8)]
    assert len({each for each in concept.against for absent in few if each in absent}) >= 4


def test_one_counterpart_may_be_chosen():
    concept = Concept.style("stipple", "testbed", against="plain")
    assert concept.against == ("plain",)
    assert all("plain" in absent for absent in concept.absent)
    assert Concept.attribute("zebra", "object", against=["horse", "dog"]).against == ("horse", "dog")
    with pytest.raises(InvalidInput, match="'plain' is given twice among the values of against"):
        Concept.style("stipple", against=["plain", "plain"])
    with pytest.raises(InvalidInput, match="'stipple' is what the absent prompts would say instead; give other words as against"):
        Concept.style("stipple", against=["plain", "fine stipple"])


@pytest.mark.parametrize(
    ("against", "said"),
    [
        ((), ""),
        (("a",), "against a"),
        (("a", "b"), "against a and b"),
        (("a", "b", "c"), "against a, b and c"),
        (("a", "b", "c", "d", "e"), "against a, b, c and 2 more"),
    ],
)
def test_a_contrast_is_one_short_phrase(against, said):
    concept = Concept("x", ["a x"], ["a"], against=against)
    assert concept.contrast == said
    assert repr(concept) == f"Concept('x': 1 pair{' ' * bool(said)}{said}, 0 test prompts)"


def test_concepts_compare_by_value_and_show_their_counts():
    concept = Concept("x", ["a x", "b x"], ["a", "b"], ["c x"])
    assert concept == Concept("x", ("a x", "b x"), ("a", "b"), ("c x",))
    assert repr(concept) == "Concept('x': 2 pairs, 1 test prompt)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", [], ["a"]), "concept 'x' has no present prompt; give at least two"),
        (("x", ["a"], []), "concept 'x' has no absent prompt"),
        (("x", ["a", "b"], ["c"]), "concept 'x' has 2 present and 1 absent prompts; they are pairs"),
        (("x", ["a"], ["b"], ["b"]), "test prompt 'b' of concept 'x' is also recorded from; keep them apart"),
        (("x", "a", ["b"]), r"present prompts are a list of strings, not the one string 'a'; write \['a'\]"),
    ],
)
def test_unusable_prompts_are_refused(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        Concept(*arguments)


def test_unknown_kinds_sets_and_names_are_refused():
    with pytest.raises(InvalidInput, match=r"kind of attribute 'stlye' is unknown; .*did you mean 'style'\?"):
        Concept.attribute("x", "stlye")
    with pytest.raises(InvalidInput, match=r"prompt set 'tetsbed' is unknown; choose one of general, testbed; did you mean 'testbed'\?"):
        Concept.style("x", "tetsbed")
    with pytest.raises(InvalidInput, match="the style has no name; say which, such as 'Van Gogh'"):
        Concept.style("  ")


def test_a_concept_is_read_from_toml(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text('name = "x"\npresent = ["a x"]\nabsent = ["a"]\ntest = ["b x"]\n')
    assert Concept.from_file(file) == Concept("x", ["a x"], ["a"], ["b x"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "is not TOML"),
        ('name = "x"\npresnt = ["a"]', r"has an unknown key 'presnt'; did you mean 'present'\?; allowed: name, present, absent, test"),
        ('name = "x"', "lacks present, absent; it needs name, present and absent"),
        ('name = "x"\npresent = "a"\nabsent = ["b"]', "present prompts are a list of strings"),
    ],
)
def test_an_unusable_concept_file_is_refused(tmp_path, text, message):
    file = tmp_path / "x.toml"
    file.write_text(text)
    with pytest.raises(InvalidInput, match=message):
        Concept.from_file(file)


def test_a_missing_or_binary_concept_file_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"the concept file .*none.toml cannot be read: No such file"):
        Concept.from_file(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="binary.toml is not TOML"):
        Concept.from_file(tmp_path / "binary.toml")
