"""The plots of effect and certainty, of places in an image, of several concepts, and of a neuron's prompts."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
import torch
from matplotlib.axes import Axes
from PIL import Image

from neuroscope import Auroc, Concept, InvalidInput, MeanDifference, NeuronScores, Site, Sites, Welch, score
from neuroscope.report import plots

RED = Image.new("RGB", (16, 8), "red")


@pytest.fixture(scope="module")
def scores(recording) -> NeuronScores:
    return score(recording, Welch())


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(params=["volcano", "where", "concepts", "prompts"])
def plot(request, scores, recording, concept):
    """Each plot, as a function of where to draw."""
    path = recording.sites.paths[0]
    given = {
        "volcano": (scores,),
        "where": (RED, torch.arange(32.0)),
        "concepts": ({"one": scores, "other": replace(scores, neutral=1.0)},),
        "prompts": (recording, concept, path, 0),
    }
    return lambda **options: getattr(plots, request.param)(*given[request.param], **options)


def test_a_plot_returns_axes_that_can_be_saved(plot, tmp_path):
    ax = plot()
    assert isinstance(ax, Axes)
    assert plots.write(ax, tmp_path / "x.png").stat().st_size > 1000


def test_a_plot_draws_where_it_is_told_and_makes_no_figure_of_its_own(plot):
    figure, ax = plt.subplots()
    assert plot(ax=ax) is ax
    assert plt.get_fignums() == [figure.number]


def test_a_plot_draws_into_axes_alone(plot, untyped):
    with pytest.raises(InvalidInput, match="ax"):
        plot(ax=plt.figure())


def test_a_volcano_has_every_neuron_where_its_numbers_are(scores):
    ax = plots.volcano(scores, q=0.1)
    points = np.concatenate([each.get_offsets() for each in ax.collections])
    p_values = np.concatenate([scores.p_values[path] for path in scores.sites.paths])
    effect = np.concatenate([scores.scores[path] for path in scores.sites.paths])
    q_values = scipy.stats.false_discovery_control(p_values)
    expected = np.stack([effect, -np.log10(q_values)], axis=1)
    assert np.allclose(points[np.argsort(points[:, 0])], expected[np.argsort(expected[:, 0])])
    assert len(ax.collections[1].get_offsets()) == (q_values <= 0.1).sum()
    assert len(ax.texts) == 5
    assert not plots.volcano(scores, named=0).texts


def test_scores_without_a_test_have_no_volcano(recording):
    with pytest.raises(InvalidInput, match=r"'MeanDifference\(weighted=False\)' gives no p-values, which this plot is made of; use a test"):
        plots.volcano(score(recording, MeanDifference()))
    plots.volcano(score(recording, Auroc()))


@pytest.mark.parametrize("given", [torch.arange(32.0), torch.arange(32.0).reshape(4, 8), np.arange(32.0)])
def test_a_map_lies_over_its_image(given):
    shown = plots.where(RED, given).images[1]
    assert np.array_equal(shown.get_array(), np.arange(32.0).reshape(4, 8))
    assert shown.get_extent() == [-0.5, 15.5, 7.5, -0.5]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.arange(30.0), "30 places fill no image of 16 × 8"),
        (torch.zeros(2, 2, 2), r"the map has shape \(2, 2, 2\); give \[position\] or \[height, width\]"),
        (torch.full((32,), float("nan")), "the map holds NaN or infinity"),
    ],
)
def test_a_map_that_is_none_is_refused(given, message):
    with pytest.raises(InvalidInput, match=message):
        plots.where(RED, given)


def test_concepts_are_rows_each_scaled_and_columns_are_their_strongest_neurons():
    sites = Sites([Site("a", 0, "x", "key", 4, True)])
    first, second = (NeuronScores(sites, {"a": torch.tensor(each).double()}) for each in ([4.0, 1.0, 0.0, 0.0], [0.0, 2.0, 3.0, 0.0]))
    ax = plots.concepts({"first": first, "second": second}, top=1)
    columns = [label.get_text() for label in ax.get_xticklabels()]
    rows = [label.get_text() for label in ax.get_yticklabels()]
    assert sorted(columns) == ["0 key 0", "0 key 2"]
    cells = dict(zip([(row, column) for row in rows for column in columns], ax.collections[0].get_array().ravel(), strict=True))
    assert cells == {("first", "0 key 0"): 1, ("first", "0 key 2"): 0, ("second", "0 key 0"): 0, ("second", "0 key 2"): 1}


def test_concepts_that_cannot_be_compared_are_refused(scores):
    with pytest.raises(InvalidInput, match="1 concept cannot be compared; give the scores of at least two"):
        plots.concepts({"one": scores})
    other = NeuronScores(Sites([Site("a", 0, "x", "key", 2, True)]), {"a": torch.zeros(2).double()})
    with pytest.raises(InvalidInput, match="the concepts have scores of different sites"):
        plots.concepts({"one": scores, "other": other})


def test_the_top_prompts_are_those_with_the_largest_activations(recording, concept):
    path = recording.sites.paths[0]
    ax = plots.prompts(recording, concept, path, 1, count=4)
    values = {
        prompt: float(value)
        for arm in ("present", "absent")
        for prompt, value in zip(getattr(concept, arm), recording.samples[arm][path][:, 1], strict=True)
    }
    best = sorted(values.items(), key=lambda each: -each[1])[:4]
    assert [label.get_text() for label in ax.get_yticklabels()] == [prompt for prompt, _ in best]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([value for _, value in best])


def test_prompts_of_another_concept_or_none_are_refused(recording, concept):
    path = recording.sites.paths[0]
    with pytest.raises(InvalidInput, match="the concept has 2 prompts and the recording 12; give the concept that was recorded"):
        plots.prompts(recording, Concept("x", ["a"], ["b"]), path, 0)
    with pytest.raises(InvalidInput, match="the recording keeps no single prompts; record with keep_samples=True"):
        plots.prompts(replace(recording, samples={}), concept, path, 0)
    with pytest.raises(InvalidInput, match="neuron=9999"):
        plots.prompts(recording, concept, path, 9999)


def test_a_talks_figure_has_larger_texts_and_lines(scores, tmp_path):
    def drawn(context):
        ax = plots.volcano(scores)
        plots.write(ax, tmp_path / f"{context}.png", context=context)
        with Image.open(tmp_path / f"{context}.png") as image:
            return ax.title.get_fontsize(), ax.lines[0].get_linewidth(), image.width

    paper, talk = drawn("paper"), drawn("talk")
    assert [one / other for one, other in zip(talk[:2], paper[:2], strict=True)] == pytest.approx([1.875, 1.875])  # 1.5 / 0.8, of seaborn
    assert talk[2] / paper[2] == pytest.approx(1.875**0.75, abs=0.01)


def test_a_context_that_is_none_is_refused(scores, tmp_path, untyped):
    with pytest.raises(InvalidInput, match="context 'poster' is unknown; choose one of paper, talk"):
        plots.write(plots.volcano(scores), tmp_path / "x.png", context="poster")
