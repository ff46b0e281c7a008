"""The laws of dose responses, their planted truth, and the words of their errors."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from PIL import Image

import neuroscope as ns
from neuroscope.evaluation import plan_dose_response
from neuroscope.evaluation._response import ALL, NO_CHANGE, RANDOM, TOP, Dose
from neuroscope.generation.batches import Sweep
from tests.families import tiny

PROMPTS = ["a red circle", "a blue star in the style of hatch"]
UNRELATED = ["a green ring", "a red cross"]
ROUNDING = 1.0  # of an image's 256 levels


@dataclass(frozen=True)
class Brightness:
    """The mean of an image's corner, in levels."""

    name: str = "brightness"

    def __call__(self, images, prompts):
        return np.array([np.asarray(image, dtype=float)[:32, :32].mean() for image in images])


@pytest.fixture(scope="module")
def scores(graph, concept):
    return ns.rank(graph, concept, ns.Welch(), layers=3, quiet=True)


def measure(graph, scores, **options):
    defaults = {"prompts": PROMPTS, "metrics": Brightness(), "budgets": [2, 8], "seeds": [3], "quiet": True, "num_inference_steps": 2}
    return ns.dose_response(graph, scores, **(defaults | {"fill": 3.0} | options))


@pytest.fixture(scope="module")
def response(graph, scores):
    return measure(graph, scores, unrelated=UNRELATED)


def of(response, control, metric="brightness"):
    frame = response.to_frame()
    return frame[(frame["control"] == control) & (frame["metric"] == metric)].reset_index(drop=True)


def made(*shares, of=40, total=1.0, none=1.0):
    """A response of 0s and 1s: so many of the prompts lose the concept by 1, 2, 4 ... neurons, and a share of all by all of them."""
    counts = [2**number for number in range(len(shares))]
    doses = [Dose(0, NO_CHANGE)]
    columns = [np.full(of, none)]
    for count, share in zip(counts, shares, strict=True):
        doses += [Dose(count, TOP), Dose(count, RANDOM)]
        columns += [np.arange(of) >= share, np.ones(of)]
    doses.append(Dose(64, ALL))
    columns.append(np.arange(of) >= total * of)
    scores = torch.tensor(np.array(columns, dtype=float))[None, :, :, None]
    return ns.DoseResponse(tuple(doses), ("shown",), tuple(map(str, range(of))), (0,), scores)


class TestLaws:
    def test_no_neuron_is_the_untouched_model_and_all_are_the_mask_of_all(self, graph, scores, response):
        every = ns.NeuronMask(scores.top(scores.sites.neuron_count), fill=3.0)
        named = {"none": None, "2": ns.NeuronMask(scores.top(2), fill=3.0), "8": ns.NeuronMask(scores.top(8), fill=3.0)}
        changes = {"none": None} | {
            f"{name}{kind}": each
            for name, mask in named.items()
            if mask is not None
            for kind, each in (("", mask), ("r", ns.random_control(mask)))
        }
        table = ns.evaluate(graph, changes | {"all": every}, PROMPTS, [3], Brightness(), controls=False, quiet=True, num_inference_steps=2)
        expected = {name: part["score"].to_list() for name, part in table.groupby("intervention")}
        assert of(response, NO_CHANGE)["score"].to_list() == expected["none"]
        assert of(response, ALL)["score"].to_list() == expected["all"]
        assert of(response, TOP)["score"].to_list() == expected["2"] + expected["8"]
        assert of(response, RANDOM)["score"].to_list() == expected["2r"] + expected["8r"]

    def test_all_neurons_of_a_site_are_the_whole_site_bit_for_bit(self, graph, pipe, scores):
        every = ns.NeuronMask(scores.top(scores.sites.neuron_count), fill=3.0)
        whole = ns.NeuronMask(ns.Neurons.at(graph.sites, {site.path: range(site.width) for site in scores.sites}), fill=3.0)
        drawn = []
        for mask in (every, whole):
            with graph.apply(mask):
                drawn.append(tiny.draw(pipe))
        assert torch.equal(*drawn)

    def test_unrelated_images_change_by_the_root_mean_square_of_pixels(self, graph, scores, response):
        options = {"num_inference_steps": 2}
        mask = ns.NeuronMask(scores.top(8), fill=3.0)
        found = of(response, TOP, "image change")
        for prompt in UNRELATED:
            before, after = (
                np.asarray(ns.generate(graph, change, [prompt], [3], **options)[0], dtype=float) / 255 for change in (None, mask)
            )
            score = found.query("neurons == 8 and prompt == @prompt")["score"].item()
            assert score == pytest.approx(math.sqrt(((before - after) ** 2).mean()), abs=ROUNDING / 255)
        assert (of(response, NO_CHANGE, "image change")["score"] == 0).all()

    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_the_batch_size_does_not_matter(self, graph, scores, response, batch_size):
        again = measure(graph, scores, unrelated=UNRELATED, batch_size=batch_size)
        pd.testing.assert_frame_equal(again.to_frame().drop(columns="score"), response.to_frame().drop(columns="score"))
        assert (again.scores - response.scores).abs().max() <= ROUNDING
        assert (again.changes - response.changes).abs().max() <= ROUNDING / 255

    def test_a_finished_ledger_gives_the_same_without_an_image(self, graph, scores, response, tmp_path, monkeypatch):
        ledger = tmp_path / "dose.jsonl"
        first = measure(graph, scores, unrelated=UNRELATED, output=ledger)
        assert torch.equal(first.scores, response.scores)
        monkeypatch.setattr(Sweep, "run", lambda *_: pytest.fail("an image is made again"))
        again = measure(graph, scores, unrelated=UNRELATED, output=ledger)
        assert torch.equal(again.scores, first.scores)
        assert torch.equal(again.changes, first.changes)

    def test_a_further_budget_makes_only_its_own_images(self, graph, scores, tmp_path, monkeypatch):
        ledger = tmp_path / "dose.jsonl"
        measure(graph, scores, output=ledger)
        before = len(ledger.read_text().splitlines())
        measure(graph, scores, output=ledger, budgets=[2, 4, 8])
        assert len(ledger.read_text().splitlines()) - before == 2 * len(PROMPTS)

    def test_it_comes_back_from_a_file(self, response, tmp_path):
        again = ns.load(ns.save(response, tmp_path / "dose.safetensors"), ns.DoseResponse)
        pd.testing.assert_frame_equal(again.to_frame(), response.to_frame())

    def test_by_default_budgets_are_powers_of_two_below_the_widest_layer(self, graph, concept, scores):
        images = plan_dose_response(graph, scores, PROMPTS, seeds=[0], num_inference_steps=2).images
        width = scores.sites.neuron_count
        assert images == len(PROMPTS) * (2 * math.ceil(math.log2(width)) + 2)
        both = ns.rank(graph, concept, ns.Welch(), layers=[3, 4], quiet=True)
        assert plan_dose_response(graph, both, PROMPTS, seeds=[0], num_inference_steps=2).images >= images

    def test_the_plan_is_what_is_made(self, graph, scores, monkeypatch):
        plan = plan_dose_response(graph, scores, PROMPTS, budgets=[2, 8], unrelated=UNRELATED, seeds=[3, 4], num_inference_steps=2)
        assert plan.images == (len(PROMPTS) + len(UNRELATED)) * 2 * 6
        counted, made = [], Sweep.run
        monkeypatch.setattr(Sweep, "run", lambda self, rows, *rest: counted.append(len(rows)) or made(self, rows, *rest))
        measure(graph, scores, unrelated=UNRELATED, seeds=[3, 4])
        assert sum(counted) == plan.images

    def test_metrics_after_the_first_are_side_effects(self, graph, scores):
        found = measure(graph, scores, metrics=[Brightness("first"), Brightness("second")])
        assert found.metrics == ("first", "second")
        assert torch.equal(found.scores[0], found.scores[1])
        assert list(found.to_frame()["metric"].unique()) == ["first", "second"]


class TestSmallest:
    def test_it_is_the_first_whose_exact_interval_lies_above(self):
        assert made(20, 39, 40, 40).smallest() == 4
        assert made(20, 39, 40, 40).smallest(0.8) == 2
        assert made(40, 40).smallest() == 1
        assert made(20, 30).smallest() == 64

    def test_intervals_are_of_so_many_prompts(self):
        found = made(20, 39).shares()
        for count, low, high in zip((20, 39, 40), found["low"][[0, 2, 4]], found["high"][[0, 2, 4]], strict=True):
            assert (low, high) == pytest.approx(tuple(scipy.stats.binomtest(count, 40).proportion_ci()))
        assert (found[found["control"] == RANDOM]["share"] == 0).all()

    def test_of_the_images_that_all_neurons_change(self):
        """Where all neurons remove it from 36 of 40 images, these 36 are what counts."""
        assert made(36, total=0.9).smallest() == 1
        low = scipy.stats.binomtest(36, 36).proportion_ci().low
        assert made(36, total=0.9).shares()["low"][0] == pytest.approx(low)

    def test_images_that_gain_it_count_against_it(self):
        response = made(40, 40)
        response.scores[0, 0, :4] = 0  # four images did not show it, and one random mask makes it appear
        response.scores[0, 2, 0] = 1
        found = response.shares()
        assert found["low"][1] < 0 < found["high"][1]
        assert found["share"][0] == 1

    def test_the_direction_does_not_matter(self):
        response = made(20, 39, 40)
        assert replace(response, scores=1 - response.scores).smallest() == response.smallest() == 4

    def test_other_scores_have_a_paired_bootstrap(self):
        rng = np.random.default_rng(0)
        full = rng.uniform(1, 2, 30)
        columns = [np.zeros(30), 0.8 * full, np.zeros(30), 0.95 * full, np.zeros(30), full]
        doses = (Dose(0, NO_CHANGE), Dose(1, TOP), Dose(1, RANDOM), Dose(2, TOP), Dose(2, RANDOM), Dose(9, ALL))
        scores = torch.tensor(np.array(columns) + rng.normal(size=30))[None, :, :, None]
        response = ns.DoseResponse(doses, ("score",), tuple(map(str, range(30))), (0,), scores)
        assert response.smallest() == 2
        np.testing.assert_allclose(response.shares()[["share", "low", "high"]].iloc[0], 0.8)

    def test_few_prompts_are_said_to_be_few(self):
        wanted = (
            r"no mask surely has 0.9 of the effect of all neurons: 1 neuron has 1.00 \[0.79, 1.00\] of it; "
            r"give more prompts \(at least 36, if all of them show it\), or other budgets"
        )
        with pytest.raises(ns.NoSmallestMask, match=wanted):
            made(16, of=16).smallest()
        assert made(36, of=36).smallest() == 1
        with pytest.raises(ns.NoSmallestMask):
            made(35, of=35).smallest()
        assert made(36, of=36).sufficient == 1
        assert made(35, of=35).sufficient is None

    def test_all_neurons_without_effect_are_said_to_have_none(self):
        wanted = r"a mask of all 64 neurons does not move 'shown' \(1 before, 1 with all masked\); rank the neurons of the layer"
        with pytest.raises(ns.NoSmallestMask, match=wanted):
            made(0, total=0.0).smallest()
        assert "does not move" in made(0, total=0.0).verdict
        assert made(0, total=0.0).shares()["share"].isna().all()

    @pytest.mark.parametrize("share", [0, 1, -1, math.nan, "0.9", True])
    def test_a_share_lies_between_0_and_1(self, share, untyped):
        with pytest.raises(ns.InvalidInput, match="share="):
            made(40).smallest(share)

    def test_the_notebook_says_it(self):
        seen = made(20, 39, 40)._repr_html_()
        assert (
            "shown: 4 of 64 neurons suffice: of the effect of all, top neurons 1.00 [0.91, 1.00], random neurons 0.00 [0.00, 0.09]" in seen
        )


class TestShowing:
    def test_the_plot_has_a_panel_a_metric_with_its_unit(self, response):
        ax = ns.plots.dose(response)
        assert [panel.get_title(loc="left") for panel in ax.child_axes] == ["brightness (score)", "image change (RMS of pixels)"]
        assert ns.plots.dose(made(20, 40)).get_ylabel() == "share of images"
        plt.close("all")

    def test_the_report_says_how_many(self, tmp_path):
        ns.save(made(20, 39, 40), tmp_path / "dose.safetensors")
        Image.new("RGB", (8, 8)).save(tmp_path / "dose.png")
        page = ns.report(tmp_path).read_text()
        assert "shown: 4 of 64 neurons suffice" in page
        assert page.count("Scores against the number of masked neurons") == 1
        assert "Effect of each mask as a share of that of all neurons" in page

    def test_the_command_line_plots_and_shows_it(self, run, tmp_path):
        ns.save(made(20, 39, 40), "dose.safetensors")
        code, out, _ = run("show", "dose.safetensors")
        assert code == 0
        assert "4 of 64 neurons suffice" in out
        assert run("plot", "dose.safetensors", "-o", "dose.png")[0] == 0
        with Image.open("dose.png") as image:
            assert image.width > 100
        code, _, said = run("plot", "dose.safetensors", "--top", 3, "-o", "dose.png")
        assert code == 2
        assert "it does not belong to this plot of a dose-response" in said


class TestCommandLine:
    @pytest.fixture
    def ask(self, run, graph, scores, recording):
        def ask(*more):
            short = ["--num-inference-steps", 1, "--seeds", 1, "--quiet"]
            return run("dose", "s.st", "--prompt", "a red star", "--read", "object=star", "--budget", 2, *short, "-o", "d.st", *more)

        bundled = ns.HookGraph(ns.testbed.load("sd1"))
        concept = ns.Concept.style("stipple", prompts="testbed")
        recorded = ns.record(bundled, concept, bundled.sites.where(layer=12, role="value"), quiet=True)
        ns.save(recorded, "r.st")
        ns.save(ns.score(recorded, ns.Welch()), "s.st")
        return ask

    def test_it_writes_a_dose_response(self, ask):
        code, out, _ = ask("--json", "--fill", "absent", "--recording", "r.st", "--unrelated", "a blue ring")
        facts = json.loads(out)
        found = ns.load("d.st", ns.DoseResponse)
        assert code == 0
        assert (found.budgets, found.prompts, found.unrelated_prompts) == ((2,), ("a red star",), ("a blue ring",))
        assert facts["smallest"] is None
        assert facts["verdict"] == found.verdict
        assert [row["neurons"] for row in facts["shares"]] == [2, 2, found.neuron_count]

    def test_a_dry_run_makes_nothing(self, ask):
        code, out, _ = ask("--dry-run", "--json", "--unrelated", "a blue ring")
        assert code == 0
        assert json.loads(out)["images"] == 2 * 4
        assert not Path("d.st").exists()

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (["--fill", "absent"], "--fill absent needs means, and scores hold none; give a number, such as --fill 0, or --recording FILE"),
            (["--budget", "1"], "budgets=[2, 1] do not grow"),
            (["--style", "stipple"], "the prompts are given by --prompt"),
            (["--metric", "LatentShare"], "give evaluate a metric of single images"),
        ],
    )
    def test_mistakes_are_one_line(self, ask, more, said):
        code, _, error = ask(*more)
        assert code == 2
        assert said in error
        assert not Path("d.st").exists()


class TestRefusals:
    @pytest.mark.parametrize(
        ("budgets", "said"),
        [
            ([8, 2], r"budgets=\[8, 2\] do not grow; give whole numbers in ascending order, each once"),
            ([2, 2], r"budgets=\[2, 2\] do not grow"),
            ([10**6], "one of budgets=1000000 is not allowed; give 1 to 64"),
            ([-1], "one of budgets=-1"),
            ([1.5], "one of budgets=1.5"),
            ("12", "budgets='12' are no numbers of neurons"),
            (8, "budgets=8 are no numbers of neurons"),
        ],
    )
    def test_budgets(self, graph, scores, budgets, said, untyped):
        with pytest.raises(ns.InvalidInput, match=said):
            measure(graph, scores, budgets=budgets)

    def test_what_is_no_ranking(self, graph, untyped):
        with pytest.raises(ns.InvalidInput, match="scores is a NoneType, which does not fit; give one such as ns.rank"):
            measure(graph, None)

    def test_a_metric_of_the_name_of_unrelated_changes(self, graph, scores):
        with pytest.raises(ns.InvalidInput, match="the name 'image change' is that of the change of unrelated images"):
            measure(graph, scores, metrics=Brightness("image change"))

    def test_doses_out_of_order(self):
        response = made(40)
        with pytest.raises(ns.InvalidInput, match="give no change, growing ones, and all neurons"):
            replace(response, doses=response.doses[::-1])
        with pytest.raises(ns.InvalidInput, match=r"the scores have shape \(1, 4, 40, 1\); give \(1, 4, 39, 1\)"):
            replace(response, prompts=response.prompts[1:])
        with pytest.raises(ns.InvalidInput, match="hold infinity"):
            replace(response, scores=response.scores / 0)


class TestPlants:
    def test_on_the_bundled_model(self):
        """The 28 planted neurons suffice, and far fewer random ones than there are neurons do not."""
        graph = ns.HookGraph(ns.testbed.load("sd1"))
        concept = ns.Concept.style("stipple", prompts="testbed")
        scores = ns.rank(graph, concept, layers=12, pairs=8, quiet=True, **ns.testbed.GENERATION)
        fill = ns.record(graph, ns.Concept.style("stipple", prompts="testbed", against="plain"), scores.sites, quiet=True).mean("absent")
        prompts = [
            f"{colour} {shape} drawn in a stipple manner" for colour in ns.testbed.world.COLOURS for shape in ns.testbed.world.OBJECTS
        ]
        reader = ns.testbed.Reader("style", "stipple")
        found = ns.dose_response(
            graph, scores, prompts, metrics=reader, fill=fill, budgets=[1, 28], seeds=[0], quiet=True, **ns.testbed.GENERATION
        )
        assert 1 < found.smallest() <= 28
        shares = found.shares().set_index(["control", "neurons"])["share"]
        assert shares[RANDOM, 28] < 0.2

    @pytest.mark.parametrize("seed", [3, 4])
    def test_on_a_constructed_one(self, seed):
        """There a mask of the planted neurons is one of all, and each of them is needed: the smallest mask is the plant."""
        pipe = ns.testbed.build("sd1", "neurons", seed)
        plant, graph = ns.testbed.planted(pipe), ns.HookGraph(pipe)
        ((path, planted),) = plant.neurons.items()
        ranked = ns.rank(graph, plant.concept, layers=plant.layers[0], quiet=True, **plant.generation)
        truth = torch.isin(torch.arange(len(ranked.scores[path])), torch.tensor(planted)).double()
        fill = ns.record(graph, plant.concept, ranked.sites, quiet=True).mean("absent")
        every = ns.NeuronMask(ranked.top(ranked.sites.neuron_count), fill=fill)
        ends = {
            prompt: [ns.generate(graph, change, [prompt], [0], **plant.generation)[0] for change in (every, None)]
            for prompt in plant.concept.present
        }

        @dataclass(frozen=True)
        class Kept:
            name: str = "share of the way from the image with all masked to the untouched one"

            def __call__(self, images, prompts):
                return np.array([ns.ImageShare()(image, *ends[prompt]) for image, prompt in zip(images, prompts, strict=True)])

        known = replace(ranked, scores={**ranked.scores, path: ranked.scores[path] + 100 * truth})
        options = {"metrics": Kept(), "fill": fill, "budgets": range(1, 13), "seeds": [0], "quiet": True}
        found = ns.dose_response(graph, known, plant.concept.present, **options, **plant.generation)
        assert len(planted) - 1 <= found.smallest() <= len(planted)
        assert found.shares().query("control == @RANDOM and neurons <= 3")["low"].max() < 0.9
