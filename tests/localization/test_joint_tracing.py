"""Causal tracing where blocks rewrite the text: attentions give image and text, and every encoder reads tokens of its own tokenizer."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from neuroscope import CausalTracing, Concept, HookGraph, InvalidInput, LatentShare, LayerScores, localize, testbed
from neuroscope.core.conditions import BatchLayout, Conditions
from neuroscope.core.sites import Component
from neuroscope.core.tokens import kinds_of_tokens
from neuroscope.localization import plan_localization
from neuroscope.localization.patching.corruption import Corruption
from neuroscope.pipeline.families import WithLength
from tests.families import tiny
from tests.families.test_joint import GUIDED, UNGUIDED, built
from tests.localization.test_causal_tracing import share_of

FAMILIES = ("sd3", "flux", "chroma")
#: Chroma has no pooled text.
POOLED = {"sd3": ("pooled",), "flux": ("pooled",), "chroma": ()}
PROMPT = "a red circle in the style of stipple"
CONCEPT = Concept("stipple", [PROMPT], ["a red circle in the style of plain"])
SMALL = {"num_inference_steps": 2, "height": 32, "width": 32}


def traced(graph: HookGraph, family: str, guided: bool = False, **options: Any) -> LayerScores:
    given = (GUIDED if guided else UNGUIDED)[family]
    return localize(graph, CONCEPT, CausalTracing(**options), LatentShare(), [0], quiet=True, **SMALL, **given)


def ends(graph: HookGraph) -> list[Conditions]:
    """The conditions of the clean and of the corrupted prompt."""
    return [graph.text.conditions([PROMPT]), Corruption(graph, "stipple", 3.0).encode(PROMPT, seed=0)]


def draw(graph: HookGraph, family: str, conditions: list[Conditions], guided: bool = False) -> Tensor:
    """Final latents, all from one noise."""
    given = dict((GUIDED if guided else UNGUIDED)[family])
    negative = graph.text.negative(given.pop("negative_prompt", None))
    arguments = graph.text.arguments(Conditions.of(conditions), Conditions.of([negative] * len(conditions)))
    noise = [torch.Generator().manual_seed(0) for _ in conditions]
    return graph.pipe(**arguments, generator=noise, output_type="latent", **SMALL, **given)[0]


@contextmanager
def hooked(graph: HookGraph, component: Component, hook: Any) -> Iterator[None]:
    handle = graph.denoiser.get_submodule(component.path.partition(".")[2]).register_forward_hook(hook)
    yield
    handle.remove()


def replayed(graph: HookGraph, family: str, component: Component, guided: bool) -> Tensor:
    """The corrupted run alone, with one component's outputs taken from a record of the clean run."""
    clean, corrupted = ends(graph)
    record: list[Any] = []
    with hooked(graph, component, lambda _module, _args, output: record.append(output)):
        draw(graph, family, [clean], guided)
    outputs = iter(record)
    with hooked(graph, component, lambda *_: next(outputs)):
        return draw(graph, family, [corrupted], guided)[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("guided", [False, True])
def test_a_restored_run_is_the_corrupted_one_into_which_a_record_is_replayed(family, guided):
    graph = built(family)
    scores = traced(graph, family, guided, component="all")
    assert scores.names == tuple(map(str, graph.components))
    target, source = (draw(graph, family, [each], guided)[0] for each in ends(graph))
    kinds: dict[str, Component] = {component.kind: component for component in graph.components}  # the last of each
    assert set(kinds) == {*POOLED[family], "cross", "ff", "ff_context"}
    for component in (graph.components[1], *kinds.values()):
        expected = share_of(replayed(graph, family, component, guided), source, target)
        assert scores.scores[graph.components.index(component)] == pytest.approx(expected, abs=1e-6)


def restored(graph: HookGraph, family: str, components: list[Component], guided: bool) -> Tensor:
    """A clean run, and beside it a corrupted one in which these components are restored."""

    def restore(output: Tensor, layout: BatchLayout) -> Tensor:
        found = output.clone()
        for part in range(len(layout.parts)):
            found[part * 2 + 1] = output[part * 2]
        return found

    with graph.rewire({component.path: restore for component in components}):
        return draw(graph, family, ends(graph), guided)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("guided", [False, True])
def test_everything_restored_is_the_clean_run_and_nothing_the_corrupted_one(family, guided):
    graph = built(family)
    clean, corrupted = (draw(graph, family, [each], guided)[0] for each in ends(graph))
    way = float((clean - corrupted).norm())
    assert way > 1e-3
    every = restored(graph, family, list(graph.components), guided)
    assert float((every[1] - clean).norm()) < 1e-6 * way
    kept = draw(graph, family, ends(graph), guided)  # the same batch without hooks
    assert float((kept[1] - corrupted).norm()) < 1e-6 * way
    if not POOLED[family]:
        return
    without = restored(graph, family, [each for each in graph.components if each.kind != "pooled"], guided)
    assert float((without[1] - clean).norm()) > 1e-4 * way  # blocks are normed by the pooled text, which is corrupted too


@pytest.mark.parametrize("family", FAMILIES)
def test_conditional_rows_alone_may_be_restored(family):
    graph = built(family)
    every, conditional = (traced(graph, family, True, component="cross", rows=rows).scores for rows in ("all", "conditional"))
    assert np.isfinite(conditional).all()
    # the rows of the negative prompt begin alike in both runs, and part with the images that they see
    assert not np.allclose(every, conditional, atol=1e-6)


@pytest.mark.parametrize("family", [*FAMILIES, "hunyuandit"])
def test_the_noise_falls_on_the_name_as_each_encoder_s_own_tokenizer_splits_it(family):
    graph = built(family) if family in FAMILIES else HookGraph(tiny.PIPELINES[family]())
    seen: list[Tensor] = []
    layers = [
        max((each for each in encoder.modules() if isinstance(each, torch.nn.ModuleList)), key=len)[0] for encoder in graph.text.encoders
    ]
    handles = [
        layer.register_forward_pre_hook(
            lambda _module, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).clone()), with_kwargs=True
        )
        for layer in layers
    ]
    graph.text.conditions([PROMPT])
    Corruption(graph, "stipple", 2.5).encode(PROMPT, seed=7)
    for handle in handles:
        handle.remove()
    names = [name for name in graph.family.text_encoders if getattr(graph.pipe, name, None) is not None]
    half = len(seen) // 2
    assert half >= len(names)
    for name, clean, noisy in zip(names, seen[:half], seen[half:], strict=True):
        tokenizer = getattr(graph.pipe, name.replace("text_encoder", "tokenizer"))
        ids = tokenizer([PROMPT], padding="max_length", max_length=clean.shape[1], truncation=True)["input_ids"][0]
        subject = tokenizer(["stipple"])["input_ids"][0]
        (kinds,) = kinds_of_tokens(WithLength(tokenizer, clean.shape[1]), [PROMPT], "stipple")
        places = np.isin(kinds, ["subject", "last subject"])
        assert set(np.array(ids)[places]) <= set(subject)
        changed = (clean != noisy)[0].any(dim=-1).numpy()
        np.testing.assert_array_equal(changed, places)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_the_text_encoders_are_restored_at_tokens_of_their_own(family):
    graph = built(family)
    corruption = Corruption(graph, "stipple", 3.0)
    clean, corrupted = ends(graph)
    kinds = corruption.parts([PROMPT])
    last = corruption.layer_count - 1  # of T5, whose states are the end of the text
    (own,) = kinds_of_tokens(graph.text.tokenizer, [PROMPT], "stipple")
    own = own[-corrupted.context.shape[1] :]
    first = 0 if family != "sd3" else graph.pipe.tokenizer.model_max_length
    for kind in kinds:
        found = corruption.encode(PROMPT, 0, restored=(last, kind)).context[0]
        chosen = torch.from_numpy((own == kind) & (np.arange(len(own)) >= first))
        torch.testing.assert_close(found[chosen], clean.context[0][chosen], atol=1e-12, rtol=0)
        torch.testing.assert_close(found[~chosen], corrupted.context[0][~chosen], atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_is_the_cost_and_components_that_a_model_lacks_are_refused(family):
    graph, given = built(family), UNGUIDED[family]
    method = CausalTracing(component="ff_context")
    plan = plan_localization(graph, CONCEPT, method, LatentShare(), [0], **SMALL, **given)
    assert traced(graph, family, component="ff_context").cost.nfe == plan.nfe
    for kind in ("resnet", "self"):
        known = ", ".join(("cross", "ff", "ff_context", *POOLED[family]))
        message = f"component='{kind}' is nowhere in {graph.family.name}; choose one of {known}, all, text"
        with pytest.raises(InvalidInput, match=message):
            traced(graph, family, component=kind)


def test_a_prompt_inside_a_template_is_refused():
    with pytest.raises(InvalidInput, match="the text encoder of qwen-image reads every prompt inside a template, .*; give ns.LocoGen"):
        traced(built("qwen"), "qwen")


@pytest.mark.slow
def test_the_planted_block_s_attention_is_what_brings_the_concept_back():
    pipe = testbed.build("sd3", "layer", 0)
    plant, graph = testbed.planted(pipe), HookGraph(pipe)
    run = partial(localize, graph, plant.concept, metric=LatentShare(), seeds=[0], quiet=True, **plant.generation)
    scores = run(CausalTracing())
    assert scores.top(1) == list(plant.layers)
