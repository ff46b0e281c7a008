import pytest
import torch

from neuroscope import ContextMap, InvalidInput, Provenance
from neuroscope.core.tokens import align
from tests.families import tiny
from tests.numerics import close


def dense_edit(graph, concept, tokens, penalty, weight):
    """The published formula in float64, from keys gathered one by one."""
    kinds = (tokens,) if isinstance(tokens, str) else tokens
    pairs = list(zip(concept.present, concept.absent, strict=True))
    rows = set()
    for (present, absent), places in zip(pairs, align(graph.pipe.tokenizer, pairs, concept.name, kinds), strict=True):
        key, target = (graph.text.encode([prompt])[0].double() for prompt in (present, absent))
        rows |= {(tuple(key[here].tolist()), tuple(target[there].tolist())) for here, there in places}
    keys, targets = (torch.tensor(each, dtype=torch.float64) for each in zip(*rows, strict=True))
    gram = keys.T @ keys + penalty * torch.eye(keys.shape[1], dtype=torch.float64)
    return (torch.linalg.inv(gram) @ (keys.T @ targets @ weight.T + penalty * weight.T)).T


@pytest.fixture
def factors(graph) -> tuple:
    width = graph.module(graph.sites.where(role="key")[0]).in_features
    rng = torch.Generator().manual_seed(0)
    return tuple(0.3 * torch.randn(3, width, generator=rng) for _ in range(2))


def test_it_moves_what_the_sites_read(graph, pipe, factors):
    (site,) = graph.sites.where(layer=8, role="value")
    with graph.capture([site]) as before:
        tiny.draw(pipe)
    context = graph.text.encode([tiny.PROMPT])
    with graph.apply(ContextMap([site.path], *factors, strength=0.5, rows="conditional")), graph.capture([site]) as after:
        tiny.draw(pipe)
    read, write = (each.to(context.dtype) for each in factors)
    expected = graph.module(site)(context + 0.5 * (context @ read.T) @ write)
    close(after.select(site.path, rows="conditional")[0], expected)
    torch.testing.assert_close(after[site.path][:, :1], before[site.path][:, :1])


def test_what_cannot_work_is_refused(graph, factors, untyped):
    read, write = factors
    value = graph.sites.where(layer=8, role="value").paths
    with pytest.raises(InvalidInput, match="the map has no site; choose keys and values"):
        ContextMap([], read, write)
    with pytest.raises(InvalidInput, match=r"the map's factors have shapes \(3, 96\) and \(2, 96\); give two of one shape"):
        ContextMap(value, read, write[:2])
    with pytest.raises(InvalidInput, match="the map moves 95 channels, and .*to_v reads 96; edit this model anew"):
        ContextMap(value, read[:, :95], write[:, :95]).check(graph.spec)
    with pytest.raises(InvalidInput, match="does not read the prompt alone; map the context of keys and values"):
        ContextMap(graph.sites.where(layer=8, role="query").paths, read, write).check(graph.spec)
    with pytest.raises(InvalidInput, match="the map was made for the family other, and this model is of stable-diffusion-unet"):
        ContextMap(value, read, write, provenance=Provenance(family="other")).check(graph.spec)
