"""What holds for every plot: where it draws, what it leaves alone, and that the smallest input is drawn."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from neuroscope import InvalidInput, LayerScores, NeuronScores, Provenance, Site, Sites, Welch, score
from neuroscope.report import plots
from tests.test_effects import effects_of

PLOTS = sorted(set(plots.__all__) - {"FORMATS", "write"})
RED = Image.new("RGB", (16, 8), "red")
ONE = Sites([Site("a", 0, "mid", "key", 1, True)])
TABLE = pd.DataFrame(
    [
        (neurons, str(neurons / 10), metric, f"prompt {prompt}", prompt / 10)
        for neurons in (1, 10)
        for metric in "ab"
        for prompt in range(3)
    ],
    columns=["neurons", "intervention", "metric", "prompt", "score"],
)


def one_neuron(value: float = 1.0) -> NeuronScores:
    return NeuronScores(ONE, {"a": torch.tensor([value]).double()}, {"a": torch.tensor([0.5]).double()}, two_sided=True)


def effects(layers: int) -> LayerScores:
    """The layers' effects, 0.5 and up, the same on all prompts and seeds."""
    values = 0.5 + np.arange(float(layers))[:, None, None] * np.ones((layers, 3, 2))
    return LayerScores.of(effects_of(values), provenance=Provenance(method="LocoGen()"))


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def usual(recording, concept, graph) -> dict[str, tuple]:
    """What each plot is given."""
    scores = score(recording, Welch())
    return {
        "concepts": ({"one": scores, "two": scores},),
        "dose": (TABLE,),
        "graph": (graph,),
        "grid": (effects(3),),
        "images": ({"a": [RED, RED]},),
        "layers": ({"a": effects(3), "b": scores.by_layer()},),
        "neurons": (scores,),
        "prompts": (recording, concept, recording.sites.paths[0], 0),
        "strengths": (TABLE,),
        "volcano": (scores,),
        "where": (RED, torch.arange(32.0)),
    }


@pytest.fixture(scope="module")
def smallest(usual) -> dict[str, tuple[tuple, dict]]:
    """The smallest that each plot is given: one row, one neuron, one layer, one place; and its options."""
    row = TABLE.head(1)
    return {
        "concepts": (({"one": one_neuron(), "two": one_neuron()},), {"top": 1}),
        "dose": ((row,), {}),
        "graph": (usual["graph"], {"layer": 0}),
        "grid": ((effects(1),), {}),
        "images": (({"a": [RED]},), {}),
        "layers": ((effects(1),), {}),
        "neurons": ((one_neuron(),), {"view": "top"}),
        "prompts": (usual["prompts"], {"count": 1}),
        "strengths": ((row,), {}),
        "volcano": ((one_neuron(),), {}),
        "where": ((RED, torch.ones(1, 1)), {}),
    }


def test_every_plot_is_tried(usual, smallest):
    assert set(usual) == set(smallest) == set(PLOTS)


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_draws_into_its_axes_alone_and_gives_them_back(name, usual):
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3))
    before = mpl.rcParams.copy()
    assert getattr(plots, name)(*usual[name], ax=right) is right
    figure.canvas.draw()
    assert plt.get_fignums() == [figure.number]
    assert not left.has_data()
    assert mpl.rcParams == before


@pytest.mark.parametrize("context", ["paper", "talk"])
@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_is_written_for_paper_and_talk(name, context, usual, tmp_path):
    ax = getattr(plots, name)(*usual[name])
    assert plots.write(ax, tmp_path / "x.png", context=context).stat().st_size > 1000
    assert not plt.get_fignums()


@pytest.mark.parametrize("name", PLOTS)
def test_the_smallest_input_is_drawn(name, smallest):
    given, options = smallest[name]
    getattr(plots, name)(*given, **options).figure.canvas.draw()


@pytest.mark.parametrize("view", ["map", "sorted", "top"])
def test_one_neuron_has_every_view(view):
    plots.neurons(one_neuron(), view=view, marked=one_neuron().top(1)).figure.canvas.draw()


def test_what_is_no_number_is_refused():
    with pytest.raises(InvalidInput):
        plots.layers(LayerScores((0,), (float("nan"),)))
    with pytest.raises(InvalidInput):
        plots.neurons(one_neuron(float("nan")))
    with pytest.raises(InvalidInput, match="score=nan is no finite number; give numbers such as 0.5"):
        plots.strengths(TABLE.assign(score=float("nan")))


class TestPoints:
    def test_points_are_scores_and_bars_their_intervals(self):
        rng = np.random.default_rng(0)
        scores = LayerScores.of(effects_of(rng.normal(size=(4, 6, 3))), provenance=Provenance(method="LocoGen()"))
        ax = plots.layers(scores, marked=2)
        points = ax.lines[-1]
        assert np.array_equal(points.get_xydata(), np.stack([scores.layers, scores.scores], axis=1))
        ends = [segment[:, 1] for segment in ax.collections[0].get_segments()]
        assert np.allclose(ends, scores.effects.layer_intervals(scores.layers))
        assert (ax.get_ylabel().replace("\n", " "), ax.get_title()) == ("effect in the metric's unit", "LocoGen, 95 % intervals")

    def test_methods_have_panels_that_name_their_units(self):
        relative = LayerScores.of(effects_of(np.full((2, 3, 2), 0.3), relative=True))
        counted = LayerScores.of(effects_of(np.ones((2, 3, 2))))
        plain = LayerScores((0, 1), (1.0, 2.0), Provenance(method="mean of Welch()"))
        drawn = plots.layers({"share": relative, "count": counted, "mean of Welch": plain})
        titles = [panel.get_title(loc="left") for panel in drawn.child_axes]
        assert titles == ["share (share of the total effect)", "count (share of images)", "mean of Welch"]

    def test_a_name_is_cut_and_its_unit_is_not(self):
        named = {f"{number} {'many ' * 30}": effects(2) for number in range(2)}
        for panel in plots.layers(named).child_axes:
            assert panel.get_title(loc="left").endswith(" …\n(effect in the metric's unit)")

    def test_kinds_of_components_share_one_scale(self):
        names = ("resnet 0", "cross 0", "resnet 1", "cross 1")
        drawn = plots.layers(LayerScores((0, 1, 2, 3), (1.0, 2.0, 0.0, 9.0), names=names)).child_axes
        assert [panel.get_title(loc="left") for panel in drawn] == ["resnet (score)", "cross (score)"]
        assert drawn[0].get_ylim() == drawn[1].get_ylim()
        assert drawn[1].lines[-1].get_xydata().tolist() == [[0, 2], [1, 9]]


class TestViews:
    @pytest.fixture
    def wide(self) -> NeuronScores:
        """Two sites in each of 30 layers of three blocks."""
        sites = [Site(f"{x}.{role}", x, f"up.{x // 10}", role, 8, True) for x in range(30) for role in ("key", "value")]
        rng = np.random.default_rng(0)
        values = {site.path: torch.tensor(rng.normal(size=8)) for site in sites}
        errors = {site.path: torch.full((8,), 0.5).double() for site in sites}
        return NeuronScores(Sites(sites), values, two_sided=True, stderr=errors)

    @pytest.mark.parametrize("view", ["map", "sorted"])
    def test_blocks_are_parted_and_named(self, wide, view):
        ax = plots.neurons(wide, view=view)
        assert [label.get_text() for label in ax.get_yticklabels()] == ["up.0: 0 to 9", "up.1: 10 to 19", "up.2: 20 to 29"]
        assert [line.get_ydata()[0] for line in ax.lines] == [20, 40]

    def test_sorted_rows_fall_and_hold_each_neurons_strength(self, wide):
        shown = plots.neurons(wide, view="sorted").collections[0].get_array().reshape(60, 8)
        expected = [-np.sort(-wide.scores[path].abs().numpy()) for path in wide.sites.paths]
        assert np.allclose(shown, expected)

    def test_marked_neurons_are_ringed_at_their_rank(self, wide):
        best = wide.top(1)
        (row,) = [row for row, path in enumerate(wide.sites.paths) if path in best]
        assert plots.neurons(wide, view="sorted", marked=best).collections[-1].get_offsets().tolist() == [[1, row + 0.5]]

    def test_the_top_are_named_from_the_strongest_with_intervals(self, wide):
        ax = plots.neurons(wide, view="top", top=5)
        table = wide.to_frame().head(5)
        named = [f"{row.layer} {row.role} {row.neuron} · up.{row.layer // 10}" for row in table.itertuples()]
        assert [label.get_text() for label in ax.get_yticklabels()] == named
        assert ax.lines[0].get_xdata().tolist() == table["score"].tolist()
        widths = [np.ptp(segment[:, 0]) for segment in ax.collections[0].get_segments()]
        assert np.allclose(widths, 2 * 1.96 * 0.5)


def test_a_close_up_has_the_layers_sites_and_every_block(graph):
    ax = plots.graph(graph, layer=1)
    texts = {text.get_text() for text in ax.texts}
    assert {f"{site.role}\n{site.width:,} neurons" for site in graph.sites.where(layer=1)} <= texts
    assert {"prompt", "layer\nbefore", "layer 1"} <= texts
    blocks = {site.block for site in graph.sites if site.layer is not None}
    assert len(ax.patches) == len(blocks) + 1
    with pytest.raises(InvalidInput, match="layer 999 is unknown"):
        plots.graph(graph, layer=999)


class TestStrengths:
    def test_a_line_goes_through_the_means_by_strength(self):
        table = pd.concat([TABLE, TABLE.assign(intervention="none", score=0.9)])
        ax = plots.strengths(table)
        for panel in ax.child_axes:
            assert np.allclose(panel.lines[0].get_xydata(), [[0, 0.9], [0.1, 0.1], [1, 0.1]])

    def test_a_column_of_strengths_goes_before_names(self):
        ax = plots.strengths(TABLE[TABLE["metric"] == "a"].assign(strength=2.0))
        assert ax.lines[0].get_xdata().tolist() == [2]

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            (TABLE.assign(intervention="mask"), "strength='mask' is no finite number; give numbers such as 0.5"),
            (TABLE.assign(strength=float("inf")), "strength=inf is no finite number"),
            (TABLE.head(0), "the table has no rows; give evaluations at one strength or more"),
            (TABLE.drop(columns="intervention"), "the table lacks the column strength; add how strong the change was"),
            (TABLE.drop(columns="score"), "the table lacks the columns score; give what ns.evaluate gives"),
        ],
    )
    def test_tables_that_cannot_be_drawn_are_refused(self, table, message):
        with pytest.raises(InvalidInput, match=message):
            plots.strengths(table)
