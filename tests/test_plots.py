import itertools
from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from neuroscope import Auroc, InvalidInput, LayerScores, NeuronScores, Patch, Provenance, Site, Sites, WeightedNorm, Welch, score
from neuroscope.report import plots
from tests.test_effects import effects_of


@pytest.fixture(scope="module")
def scores(recording) -> NeuronScores:
    return score(recording, Welch())


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rows = [(neurons, metric, prompt, prompt / 10) for neurons in (1, 10, 50) for metric in ("style", "object") for prompt in range(4)]
    return pd.DataFrame(rows, columns=["neurons", "metric", "prompt", "score"])


@pytest.fixture
def images() -> dict[str, list[Image.Image]]:
    return {name: [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")] for name in ("none", "mask")}


@pytest.fixture(params=["neurons", "layers", "grid", "images", "dose", "graph"])
def plot(request, scores, table, images, graph):
    """Each plot, as a function of where to draw."""
    given = {"neurons": scores, "layers": scores.by_layer(), "grid": parted(), "images": images, "dose": table, "graph": graph}
    return lambda **options: getattr(plots, request.param)(given[request.param], **options)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def parted(relative: bool = True) -> LayerScores:
    """Effects 0 to 5 of three layers in two parts of the schedule, where the total effect is 1."""
    patches = [Patch((layer,), part) for layer in (3, 4, 5) for part in ("0-50 %", "50-100 %")]
    effects = effects_of(np.arange(6.0)[:, None, None] * np.ones((6, 2, 1)), patches=patches, relative=relative)
    return LayerScores.of(effects, provenance=Provenance(concept="stipple", method="LocoGen(parts=2)"))


def labels(ticks) -> list[str]:
    return [label.get_text() for label in ticks]


def test_a_plot_returns_axes_that_can_be_drawn_and_saved(plot, tmp_path):
    ax = plot()
    assert isinstance(ax, Axes)
    ax.figure.savefig(tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size[0] > 100


def test_a_plot_draws_where_it_is_told_and_makes_no_figure_of_its_own(plot):
    _, axes = plt.subplots(1, 2)
    assert plot(ax=axes[1]) is axes[1]
    assert len(plt.get_fignums()) == 1
    assert not axes[0].has_data()


def test_a_plot_changes_no_global_setting(plot):
    before = mpl.rcParams.copy()
    plot().figure.canvas.draw()
    assert mpl.rcParams == before


def test_texts_are_no_formulas(scores, images, table):
    odd = "$100 and $\\frac{$"
    provenance = Provenance(concept=odd, method=odd)
    plots.neurons(replace(scores, provenance=provenance)).figure.canvas.draw()
    plots.layers(replace(scores.by_layer(), provenance=provenance)).figure.canvas.draw()
    plots.images({odd: images["none"]}, [odd]).figure.canvas.draw()
    both = pd.concat([table.assign(control=odd, metric=odd), table.assign(control="random", metric=odd, score=0.9)])
    plots.dose(both).figure.canvas.draw()
    plots.dose(both.assign(score=0.5)).figure.canvas.draw()
    plots.dose(pd.concat([both, table.assign(control=odd)])).figure.canvas.draw()


def test_a_plot_changes_no_data(scores, table):
    before, copy = {path: each.clone() for path, each in scores.scores.items()}, table.copy()
    plots.neurons(scores, marked=scores.top(5))
    plots.dose(table)
    assert all(torch.equal(scores.scores[path], each) for path, each in before.items())
    pd.testing.assert_frame_equal(table, copy)


class TestNeurons:
    def test_rows_are_sites_and_colours_are_scores(self, scores):
        ax = plots.neurons(scores)
        (mesh,) = ax.collections
        shown = np.ma.filled(mesh.get_array(), np.nan).reshape(len(scores.sites), -1)
        for row, site in enumerate(scores.sites):
            np.testing.assert_array_equal(shown[row, : site.width], scores.scores[site.path])
        assert labels(ax.get_yticklabels()) == [f"{site.layer} {site.role}" for site in scores.sites]
        assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("neuron", "layer and role", "stipple: neurons")
        assert mesh.colorbar.ax.get_ylabel() == "Welch"

    def test_narrow_sites_leave_the_end_of_their_row_empty(self):
        sites = Sites(Site(name, row, "mid", "key", width, text_only=True) for row, (name, width) in enumerate({"a": 2, "b": 5}.items()))
        ax = plots.neurons(NeuronScores(sites, {"a": torch.ones(2).double(), "b": torch.ones(5).double()}))
        shown = ax.collections[0].get_array().reshape(2, 5)
        assert np.ma.getmaskarray(shown).tolist() == [[False, False, True, True, True], [False] * 5]

    def test_marked_neurons_are_outlined_where_they_are(self, scores):
        top = scores.top(7)
        ax = plots.neurons(scores, marked=top)
        rows = {path: row for row, path in enumerate(scores.sites.paths)}
        expected = {(index + 0.5, rows[path] + 0.5) for path, chosen in top.items() for index in chosen}
        assert set(map(tuple, ax.collections[-1].get_offsets().tolist())) == expected

    @pytest.mark.parametrize(("method", "centred"), [(Welch(), True), (Auroc(), True), (WeightedNorm(), False)])
    def test_colours_are_centred_on_neutral_where_both_sides_count(self, recording, method, centred):
        scores = score(recording, method)
        norm = plots.neurons(scores).collections[0].norm
        assert (norm.vmin + norm.vmax == pytest.approx(2 * scores.neutral)) is centred

    def test_many_sites_stay_on_one_page(self):
        sites = Sites(Site(f"{layer}.{role}", layer, "mid", role, 4, text_only=True) for layer in range(70) for role in ("key", "value"))
        ax = plots.neurons(NeuronScores(sites, {path: torch.ones(4).double() for path in sites.paths}))
        assert ax.figure.get_figheight() <= 9
        assert labels(ax.get_yticklabels()) == [f"{layer} key" for layer in range(0, 70, 2)]

    def test_scores_that_are_all_neutral_are_drawn(self, scores):
        flat = {path: torch.zeros_like(each) for path, each in scores.scores.items()}
        for two_sided in (True, False):
            plots.neurons(NeuronScores(scores.sites, flat, two_sided=two_sided)).figure.canvas.draw()


class TestLayers:
    def test_rows_are_methods_each_scaled_to_its_largest(self):
        named = {"first": LayerScores((0, 1, 2), (1.0, 4.0, 2.0)), "second": LayerScores((0, 1, 2), (0.0, 0.1, 0.2))}
        ax = plots.layers(named, marked=2, view="heatmap")
        shown = np.asarray(ax.collections[0].get_array()).reshape(2, 3)
        np.testing.assert_allclose(shown, [[0.25, 1, 0.5], [0, 0.5, 1]])
        assert labels(ax.get_yticklabels()) == ["first", "second"]
        assert labels(ax.get_xticklabels()) == ["0", "1", "2"]
        assert ax.get_xlabel() == "cross-attention layer"
        (outline,) = ax.patches
        assert outline.get_xy() == (2, 0)

    def test_one_score_is_named_after_its_method(self):
        scores = LayerScores((0, 1), (1.0, 2.0), Provenance(method="mean of Welch()"))
        assert labels(plots.layers(scores, view="heatmap").get_yticklabels()) == ["mean of Welch"]

    def test_layers_that_score_nothing_are_drawn(self):
        plots.layers(LayerScores((0, 1), (0.0, 0.0)), view="heatmap").figure.canvas.draw()

    def test_components_have_a_row_a_kind_on_one_scale(self):
        names = ("resnet 0", "cross 0", "resnet 1", "cross 1", "resnet 2")
        ax = plots.layers(LayerScores((0, 1, 2, 3, 4), (1.0, 2.0, 0.0, 4.0, 3.0), names=names), view="heatmap")
        shown = np.ma.filled(ax.collections[0].get_array(), np.nan).reshape(2, 3)
        np.testing.assert_allclose(shown, [[0.25, 0, 0.75], [0.5, 1, np.nan]])
        assert labels(ax.get_yticklabels()) == ["resnet", "cross"]
        assert labels(ax.get_xticklabels()) == ["0", "1", "2"]
        assert ax.get_xlabel() == "number among its kind, in execution order"

    def test_components_of_other_names_are_layers(self):
        ax = plots.layers(LayerScores((0, 1), (1.0, 2.0), names=("first", "second")), view="heatmap")
        assert labels(ax.get_xticklabels()) == ["0", "1"]

    @pytest.mark.parametrize(("width", "expected"), [(7, range(0, 70, 5)), (2.7, range(0, 70, 10))])
    def test_of_many_layers_as_many_are_labelled_as_there_is_room_for(self, width, expected):
        ax = plots.layers(LayerScores(tuple(range(70)), tuple(range(70))), view="heatmap", ax=plt.subplots(figsize=(width, 1.5))[1])
        assert labels(ax.get_xticklabels()) == [str(layer) for layer in expected]
        ax.figure.canvas.draw()
        boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))

    def test_long_names_are_wrapped_and_cut_to_their_row(self):
        named = {f"method {number} with {'many ' * 30}options": LayerScores((0, 1), (1.0, 2.0)) for number in range(3)}
        ax = plots.layers(named, view="heatmap", ax=plt.subplots(figsize=(2.7, 2), layout="constrained")[1])
        ax.figure.canvas.draw()
        boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
        assert all(above.y0 > below.y1 for above, below in itertools.pairwise(boxes))
        assert all(label.endswith(" …") for label in labels(ax.get_yticklabels()))

    def test_no_scores_are_refused(self):
        with pytest.raises(InvalidInput, match="there are no layer scores to plot; give at least one"):
            plots.layers({})


class TestGrid:
    @pytest.mark.parametrize(("relative", "label"), [(True, "share of the total effect"), (False, "effect")])
    def test_rows_are_parts_and_columns_are_layers(self, relative, label):
        ax = plots.grid(parted(relative))
        shown = np.asarray(ax.collections[0].get_array()).reshape(2, 3)
        np.testing.assert_allclose(shown, [[0, 2, 4], [1, 3, 5]])
        assert labels(ax.get_yticklabels()) == ["0-50 %", "50-100 %"]
        assert labels(ax.get_xticklabels()) == ["3", "4", "5"]
        assert ax.get_title() == "stipple: layers by part"
        assert ax.collections[0].colorbar.ax.get_ylabel() == label
        assert ax.collections[0].get_clim() == (0, 5)

    def test_effects_of_nothing_are_drawn(self):
        scores = parted()
        plots.grid(replace(scores, effects=replace(scores.effects, values=0 * scores.effects.values))).figure.canvas.draw()

    def test_scores_without_effects_are_refused(self):
        with pytest.raises(InvalidInput, match="grid needs scores measured on generated images"):
            plots.grid(LayerScores((0, 1), (0.5, 0.1)))


class TestImages:
    def test_a_contact_sheet_has_the_shape_that_is_drawn(self):
        sheet = torch.randint(0, 256, (2, 8, 4, 4, 3), dtype=torch.uint8)
        scores = replace(parted(), sheet=sheet, columns=("source", *map(str, parted().effects.patches), "target"))
        ax = plots.images(scores.images, scores.columns)
        assert [label.replace("\n", " ") for label in labels(ax.get_yticklabels())] == ["prompt 0", "prompt 1"]
        assert labels(ax.get_xticklabels()) == list(scores.columns)
        assert np.array_equal(ax.images[0].get_array()[-4:, -4:], sheet[1, 7])

    def test_rows_and_columns_are_labelled(self, images):
        ax = plots.images(images, ["a red circle in the style of stipple", "seed 1"])
        assert labels(ax.get_yticklabels()) == ["none", "mask"]
        assert [label.replace("\n", " ") for label in labels(ax.get_xticklabels())] == ["a red circle in the style of stipple", "seed 1"]

    def test_each_picture_stands_in_its_row_and_column(self, images):
        images["mask"][1] = Image.new("RGB", (16, 16), "lime")
        canvas = plots.images(images).images[0].get_array()
        height, width, _ = canvas.shape
        corners = [tuple(canvas[row * (height - 16) + 8, column * (width - 16) + 8]) for row in (0, 1) for column in (0, 1)]
        assert corners == [(255, 0, 0), (0, 0, 255), (255, 0, 0), (0, 255, 0)]

    @pytest.mark.parametrize(("rows", "counts"), [({}, r"\[\]"), ({"a": []}, r"\[0\]"), ({"a": [1], "b": [1, 2]}, r"\[1, 2\]")])
    def test_ragged_rows_are_refused(self, rows, counts, untyped):
        with pytest.raises(InvalidInput, match=f"the image grid needs rows of equal, non-zero length, not {counts}"):
            plots.images(rows)

    def test_pictures_of_different_size_are_refused(self):
        with pytest.raises(InvalidInput, match="size"):
            plots.images({"a": [Image.new("RGB", (16, 16)), Image.new("RGB", (8, 8))]})


class TestDose:
    def test_there_is_a_panel_a_metric_with_a_line_through_the_means(self, table):
        ax = plots.dose(table)
        assert [panel.get_title(loc="left") for panel in ax.child_axes] == ["style", "object"]
        for panel in ax.child_axes:
            (line,) = panel.get_lines()
            np.testing.assert_array_equal(line.get_xdata(), [1, 10, 50])
            np.testing.assert_allclose(line.get_ydata(), table.groupby("neurons")["score"].mean())
            assert panel.get_ylim() == (-0.08, 1.08)
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("neurons in the mask", "share of images")

    def test_one_metric_is_drawn_into_the_axes_themselves(self, table):
        ax = plots.dose(table[table["metric"] == "style"])
        assert ax.child_axes == []
        assert len(ax.get_lines()) == 1
        assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("neurons in the mask", "share of images", "style, 95 % interval")

    @pytest.mark.parametrize(("size", "columns"), [((7, 2.5), 2), ((3, 3), 1)])
    def test_panels_are_side_by_side_where_there_is_room(self, table, size, columns):
        ax = plots.dose(table, ax=plt.subplots(figsize=size)[1])
        ax.figure.canvas.draw()
        boxes = [panel.get_window_extent() for panel in ax.child_axes]
        assert len({round(box.x0) for box in boxes}) == columns
        assert not boxes[0].overlaps(boxes[1])
        assert all(ax.get_window_extent().padded(1).containsx(box.x1) for box in boxes)

    def test_scores_beyond_one_are_no_shares(self, table):
        assert plots.dose(table.assign(score=5.0)).get_ylabel() == "score"

    def test_controls_are_named_once_at_the_ends_of_their_lines(self, table):
        both = pd.concat([table.assign(control="mask"), table.assign(control="random", score=0.9)])
        first, second = plots.dose(both).child_axes
        assert [(text.get_text(), text.get_color()) for text in first.texts] == [
            (line.get_label(), line.get_color()) for line in first.lines
        ]
        assert [text.get_text() for text in first.texts] == ["mask", "random"]
        assert list(second.texts) == []

    def test_controls_that_are_close_everywhere_have_a_legend(self, table):
        both = pd.concat([table.assign(control="mask"), table.assign(control="random")])
        first, second = plots.dose(both).child_axes
        assert {"mask", "random"} <= set(labels(first.get_legend().get_texts()))
        assert second.get_legend() is None

    def test_lines_that_coincide_have_markers_of_different_size(self, table):
        both = pd.concat([table.assign(control="mask"), table.assign(control="random")])
        small, large = plots.dose(both).child_axes[0].get_lines()
        assert small.get_markersize() < large.get_markersize()
        assert large.get_markerfacecolor() == "none"

    @pytest.mark.parametrize(("doses", "scale"), [((1, 10, 50), "log"), ((1, 2, 4), "linear"), ((0, 10, 50), "linear")])
    def test_doses_of_a_wide_range_have_a_logarithmic_axis(self, table, doses, scale):
        ax = plots.dose(table.assign(neurons=table["neurons"].map(dict(zip((1, 10, 50), doses, strict=True)))))
        assert {panel.get_xscale() for panel in ax.child_axes} == {scale}
        assert labels(ax.child_axes[-1].get_xticklabels()) == [str(dose) for dose in doses]

    def test_a_table_without_the_columns_is_refused(self, table):
        with pytest.raises(InvalidInput, match="the dose table lacks the columns metric, neurons; add them to evaluate's table"):
            plots.dose(table[["score", "prompt"]])

    def test_a_table_without_rows_is_refused(self, table):
        with pytest.raises(InvalidInput, match="the dose table has no rows; give evaluate's table of at least one mask"):
            plots.dose(table[:0])

    def test_doses_that_are_no_numbers_are_refused(self, table):
        with pytest.raises(InvalidInput, match="column neurons holds 'few'; give numbers of masked neurons"):
            plots.dose(table.assign(neurons="few"))

    def test_a_metric_without_scores_and_a_control_of_one_metric_are_drawn(self, table):
        unknown = table.assign(control="mask", score=table["score"].where(table["metric"] == "style"))
        random = table[table["metric"] == "style"].assign(control="random", score=0.9)
        ax = plots.dose(pd.concat([unknown, random]))
        ax.figure.canvas.draw()
        assert [text.get_text() for text in ax.child_axes[0].texts] == ["mask", "random"]

    def test_what_doses_are_compared_with_is_drawn_as_levels(self, table):
        lines = pd.concat([table.assign(control="top neurons"), table.assign(control="random neurons", score=0.9)])
        once = table[table["neurons"] == 1]
        levels = [
            once.assign(control=name, neurons=dose, score=score) for name, dose, score in (("no change", 0, 1.0), ("all neurons", 99, 0.0))
        ]
        ax = plots.dose(pd.concat([levels[0], lines, levels[1]]))
        for panel in ax.child_axes:
            heights = {line.get_label(): set(line.get_ydata()) for line in panel.get_lines()}
            assert (heights["no change"], heights["all neurons"]) == ({1.0}, {0.0})
            assert panel.get_xscale() == "log"
        assert labels(ax.child_axes[-1].get_xticklabels()) == ["1", "10", "50"]
        named = labels(ax.get_legend().get_texts())
        assert named == ["top neurons", "random neurons", "no change", "all neurons"]
        ax.figure.canvas.draw()
        legend, label = (each.get_window_extent() for each in (ax.get_legend(), ax.xaxis.label))
        assert not legend.overlaps(label)

    def test_panels_of_different_units_name_their_own(self, table):
        units = {"style": "share of images", "object": "score"}
        mixed = table.assign(unit=table["metric"].map(units))
        ax = plots.dose(mixed.assign(score=mixed["score"].where(mixed["metric"] == "style", 5 * mixed["score"])))
        assert [panel.get_title(loc="left") for panel in ax.child_axes] == ["style (share of images)", "object (score)"]
        assert ax.get_ylabel() == ""
        first, second = ax.child_axes
        assert first.get_ylim() == (-0.08, 1.08) != second.get_ylim()

    def test_lines_that_were_there_are_not_named(self, table):
        ax = plt.subplots()[1]
        ax.axhline(0.5, label="chance")
        both = pd.concat([table.assign(control="mask"), table.assign(control="random", score=0.9)])
        plots.dose(both[both["metric"] == "style"], ax=ax)
        assert [text.get_text() for text in ax.texts] == ["mask", "random"]


def test_the_graph_shows_every_site_and_edge(graph):
    ax = plots.graph(graph)
    assert len(ax.collections) == len(graph.sites)
    assert len(ax.get_lines()) == len(graph.edges)
    assert labels(ax.get_yticklabels()) == ["key", "value", "query", "heads", "output", "feedforward"]
    assert {text.get_text() for text in ax.texts} == {"prompt", "image"}
