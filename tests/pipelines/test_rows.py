"""For every pipeline class: changes and records reach exactly the rows that carry the prompt, or `HookGraph` refuses it."""

import functools
from contextlib import ExitStack

import pytest
import torch

from neuroscope import Concept, ContextSwap, HookGraph, NeuronMask, Neurons, UnsupportedModel, record
from tests.pipelines.build import PIPELINES
from tests.pipelines.example import NEGATIVE, PROMPTS, conditional, layout
from tests.pipelines.seen import contexts, denoiser_of, hooked, layouts, mask_of

OTHER = "a yellow cross in a striped style"
RIGHT = [name for name, example in PIPELINES.items() if not example.refusal]
REFUSED = [name for name, example in PIPELINES.items() if example.refusal]
#: All runs of pipelines whose rows are their own; of the others one with guidance and one without.
RUNS = [
    pytest.param(name, *run, id=f"{name}-{'guided' if run[0] else 'unguided'}-{run[1]}")
    for name in RIGHT
    for run in PIPELINES[name].rows
    if PIPELINES[name].rows != layout("na") or run in ((True, 2), (False, 1))
]


@functools.cache
def built(name):
    return PIPELINES[name].build()


@functools.cache
def graph_of(name):
    return HookGraph(built(name))


@pytest.mark.parametrize("name", PIPELINES)
def test_rows_are_as_listed(name):
    example, pipe = PIPELINES[name], built(name)
    for guided, prompts in example.rows:
        seen = layouts(pipe, lambda guided=guided, prompts=prompts: example.run(pipe, prompts, guided))
        assert len(seen) >= 1
        assert seen == example.calls(prompts, guided, len(seen))


@pytest.mark.parametrize("name", REFUSED)
def test_pipelines_that_would_be_wrong_are_refused_by_name(name):
    with pytest.raises(UnsupportedModel, match=PIPELINES[name].kind) as refused:
        HookGraph(built(name))
    assert PIPELINES[name].refusal in str(refused.value)


@pytest.mark.parametrize(("name", "guided", "prompts"), RUNS)
def test_changes_reach_the_rows_that_carry_the_prompt(name, guided, prompts):
    example, pipe = PIPELINES[name], built(name)
    graph = graph_of(name)
    site = middle(graph, "value")
    mask = NeuronMask(Neurons.at(graph.sites, {site.path: range(8)}), fill=2.0)
    swap = ContextSwap.of(graph, graph.sites.where(role=("key", "value")), OTHER)
    unchanged = final(example.run(pipe, prompts, guided))
    with graph.apply(swap, mask):
        changed = final(example.run(pipe, prompts, guided))
    true = plainly_changed(example, pipe, prompts, guided, site.module)
    moved = (true - unchanged).abs().max()
    torch.testing.assert_close(changed, true, rtol=0, atol=float(1e-3 * moved))


@pytest.mark.parametrize(("name", "guided", "prompts"), RUNS)
def test_records_are_of_the_rows_that_carry_the_prompt(name, guided, prompts):
    example, pipe = PIPELINES[name], built(name)
    graph = graph_of(name)
    site = middle(graph, "heads")
    shown = list(PROMPTS[:prompts])
    options = example.options(prompts, guided, listed=False) | ({"negative_prompt": NEGATIVE} if example.negative else {})
    recording = record(graph, Concept("none", shown, [f"not {each}" for each in shown]), [site], batch_size=prompts, quiet=True, **options)
    true = plainly_recorded(example, pipe, prompts, guided, site.module)
    torch.testing.assert_close(recording.mean("present")[site.path], true, rtol=1e-4, atol=1e-5)


def middle(graph, role):
    """The site of a role in the middle block; a transformer's is that in the middle of all."""
    sites = graph.sites.where(role=role)
    return next((site for site in sites if site.block == "mid"), sites[len(sites) // 2])


def final(made):
    """The final latents or pixels of a run, float64."""
    return torch.as_tensor(made.images if hasattr(made, "images") else made.frames).double()


class Rows:
    """Which rows of the current call of the denoiser carry a prompt."""

    def __init__(self, example, prompts, guided):
        self.calls = 0
        self._of = lambda number: example.rows[guided, prompts][number % len(example.rows[guided, prompts])]

    def count(self, *_):
        self.calls += 1

    @property
    def letters(self):
        return self._of(self.calls - 1)


def plainly_changed(example, pipe, prompts, guided, module):
    """What the run is when plain hooks change the true rows: another context, and 8 values of one layer set to 2."""
    rows, other, denoiser = Rows(example, prompts, guided), contexts(pipe, [OTHER])[0], denoiser_of(pipe)
    projection = getattr(denoiser, "encoder_hid_proj", None)

    def swapped(context, other=other):
        changed = context.clone()
        changed[conditional(rows.letters)] = other
        return changed

    def swap(_module, args, kwargs):
        if projection is not None:
            return (swapped(args[0]), *args[1:]), kwargs
        given = {"encoder_hidden_states": swapped(kwargs["encoder_hidden_states"])}
        if kwargs.get("encoder_attention_mask") is not None:
            given["encoder_attention_mask"] = swapped(kwargs["encoder_attention_mask"], mask_of(pipe, OTHER))
        return args, kwargs | given

    def mask(_module, _args, output):
        changed = output.clone()
        changed[conditional(rows.letters), :, :8] = 2.0
        return changed

    with ExitStack() as stack:
        stack.enter_context(hooked(denoiser, before=rows.count))
        stack.enter_context(hooked(denoiser if projection is None else projection, before=swap))
        stack.enter_context(hooked(denoiser.get_submodule(module), after=mask))
        return final(example.run(pipe, prompts, guided))


def plainly_recorded(example, pipe, prompts, guided, module):
    """The mean input of a module over calls, prompts and places, float64 [neuron], of the true rows."""
    rows, seen = Rows(example, prompts, guided), []

    def watch(_module, args, _kwargs):
        if chosen := conditional(rows.letters):  # a call may be of the negative prompt alone
            seen.append(args[0][chosen].double().mean(dim=(0, 1)))

    denoiser = denoiser_of(pipe)
    with hooked(denoiser, before=rows.count), hooked(denoiser.get_submodule(module), before=watch):
        example.run(pipe, prompts, guided)
    return torch.stack(seen).mean(dim=0)
