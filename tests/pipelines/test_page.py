"""The page of supported pipelines says what the tests' table and the package's refusals say."""

from docs import pipelines
from neuroscope.pipeline.families import REFUSED_PIPELINES
from tests.pipelines.build import PIPELINES


def test_the_page_is_up_to_date():
    text = pipelines.PAGE.read_text()
    assert pipelines.page(text) == text, "run `python -m docs.pipelines`"


def test_every_pipeline_is_on_the_page_once_in_its_table():
    right, refused = pipelines.supported(), pipelines.refused()
    for example in PIPELINES.values():
        line = f"\n| `{example.kind}`" + (f", {example.variant} |" if example.variant else " |")
        assert (right.count(line), refused.count(line)) == ((0, 1) if example.refusal else (1, 0))
    assert all(f"\n| `{name}` |" in refused for name in REFUSED_PIPELINES)


def test_every_refusal_has_a_reason():
    for example in PIPELINES.values():
        assert bool(example.refusal) == bool(example.why or example.kind in REFUSED_PIPELINES), example.name
