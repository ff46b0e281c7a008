"""Recording: streamed statistics of activations, with and without a concept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import einops
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from neuroscope import _checks
from neuroscope._errors import InvalidInput, NonFiniteActivation, UnsupportedModel, choose
from neuroscope.arguments import check_generation, refuse_set_here
from neuroscope.artifacts import Artifact
from neuroscope.calls import Call
from neuroscope.concepts import Concept
from neuroscope.graph import HookGraph
from neuroscope.provenance import Provenance
from neuroscope.sites import Site, Sites
from neuroscope.statistics import Moments
from neuroscope.tokens import TOKENS, Token, select_tokens

ARMS = ("present", "absent")
_SET_HERE = ("prompt", "prompt_2", "prompt_embeds", "pooled_prompt_embeds", "generator", "latents", "num_images_per_prompt")


@dataclass(frozen=True, eq=False)
class Recording(Artifact):
    """Streamed statistics of each site's activations over prompts, in two arms: concept "present" and "absent".

    One prompt is one observation: its activations are averaged over the chosen tokens, and over steps unless they were
    recorded by step.

    Attributes:
        sites: the recorded sites, in execution order.
        moments: for each arm and path, `Moments` of width [neuron], or [step, neuron] if recorded by step.
        samples: for each arm and path, every observation [prompt, neuron] as float32; empty unless asked for.
        outgoing: for each path, the norm of the weights that read each neuron [neuron]; without paths whose readers are quantised.
        token: the kind of token recorded at text-side sites.
        provenance: model and concept.
    """

    kind: ClassVar[str] = "recording"

    sites: Sites
    moments: Mapping[str, Mapping[str, Moments]]
    samples: Mapping[str, Mapping[str, Float[Tensor, "prompt neuron"]]]
    outgoing: Mapping[str, Float[Tensor, "neuron"]]
    token: Token
    provenance: Provenance = Provenance()

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.count(arm)} {arm}" for arm in ARMS)
        return f"Recording({self.provenance.concept!r}: {counts} prompts, {len(self.sites)} sites, token {self.token!r})"

    def count(self, arm: str) -> int:
        """The number of prompts in an arm."""
        return next(iter(self.moments[choose("arm", arm, ARMS)].values())).count

    def mean(self, arm: str) -> dict[str, Float[Tensor, "neuron"]]:
        """The mean activation of each neuron in an arm, by path; averaged over steps if recorded by step."""
        means = {path: moments.mean for path, moments in self.moments[choose("arm", arm, ARMS)].items()}
        return {path: mean.mean(dim=0) if mean.ndim == 2 else mean for path, mean in means.items()}

    def to_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `Artifact`."""
        tensors = {f"outgoing:{path}": norm for path, norm in self.outgoing.items()}
        for arm in ARMS:
            for path, moments in self.moments[arm].items():
                tensors |= {f"{arm}.mean:{path}": moments.mean, f"{arm}.deviation:{path}": moments.deviation}
            tensors |= {f"{arm}.samples:{path}": values for path, values in self.samples.get(arm, {}).items()}
        header = {"sites": [asdict(site) for site in self.sites], "token": self.token, "counts": {arm: self.count(arm) for arm in ARMS}}
        return tensors, header | {"provenance": asdict(self.provenance)}

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Self:
        """See `Artifact`."""
        sites = Sites(Site(**each) for each in header["sites"])

        def moments(arm: str, path: str) -> Moments:
            return Moments(header["counts"][arm], tensors[f"{arm}.mean:{path}"], tensors[f"{arm}.deviation:{path}"])

        kept = {arm: {path: tensors[key] for path in sites.paths if (key := f"{arm}.samples:{path}") in tensors} for arm in ARMS}
        return cls(
            sites=sites,
            moments={arm: {path: moments(arm, path) for path in sites.paths} for arm in ARMS},
            samples={arm: found for arm, found in kept.items() if found},
            outgoing={path: tensors[key] for path in sites.paths if (key := f"outgoing:{path}") in tensors},
            token=header["token"],
            provenance=Provenance(**header["provenance"]),
        )


def record(
    graph: HookGraph,
    concept: Concept,
    sites: Iterable[Site] | Site | None = None,
    token: Token = "last",
    *,
    by_step: bool = False,
    keep_samples: bool = False,
    batch_size: int = 16,
    seed: int = 0,
    quiet: bool = False,
    **generation: Any,
) -> Recording:
    """Records activations of the concept's present and absent prompts.

    Sites that depend on the prompt alone (keys and values) are computed from the text encoder without any denoising.
    For other sites the pipeline runs, `batch_size` prompts at a time, and its conditional rows are averaged over the
    image's positions.

    Args:
        graph: the model.
        concept: its prompts.
        sites: which sites, one or several; by default all keys and values.
        token: which token of the prompt text-side sites are read at; see `select_tokens`.
        by_step: keep the moments of each denoising step apart, for sites that need denoising.
        keep_samples: also keep every observation, as rank statistics need; memory then grows with the prompts.
        batch_size: prompts at a time.
        seed: prompt number i starts from the noise of `seed + i`, the same in both arms.
        quiet: show no progress bar.
        **generation: passed to the pipeline, such as `num_inference_steps`.

    Raises:
        InvalidInput: no site, an unknown token, `by_step` without sites that need denoising, a value of another kind, or an option
            that the pipeline does not have.
        UnknownSite: the model lacks one of the sites.
        NonFiniteActivation: an activation is NaN or infinite; the message names its site.
    """
    _check_arguments(graph, concept, batch_size, seed, by_step=by_step, keep_samples=keep_samples, quiet=quiet)
    refuse_set_here(generation, _SET_HERE)
    check_generation(graph.pipe, generation, record)
    choose("token", token, TOKENS)
    given = None if sites is None else _checks.several("sites", sites, Site, "graph.sites.where(layer=8)")
    chosen = graph.sites.where(role=("key", "value")) if given is None else graph.sites.at(site.path for site in given)
    if not chosen:
        raise InvalidInput("there is no site to record; choose some with graph.sites.where(...)")
    text, denoised = chosen.where(text_only=True), chosen.where(text_only=False)
    if by_step and text:
        raise InvalidInput(f"by_step has no meaning for {text[0].path}, which is the same at every step; record it apart")
    arms = {}
    for arm in ARMS:
        prompts = getattr(concept, arm)
        tally = _Tally(keep_samples)
        with tqdm(total=len(prompts), desc=f"recording {concept.name}: {arm}", disable=quiet) as bar:
            for first in range(0, len(prompts), batch_size):
                batch = prompts[first : first + batch_size]
                _record_text(graph, text, batch, token, concept.name, tally)
                if denoised:
                    _record_denoised(graph, denoised, batch, seed + first, by_step, tally, generation)
                bar.update(len(batch))
        arms[arm] = tally
    return Recording(
        sites=chosen,
        moments={arm: tally.moments for arm, tally in arms.items()},
        samples={arm: tally.joined() for arm, tally in arms.items()} if keep_samples else {},
        outgoing=_outgoing(graph, chosen),
        token=token,
        provenance=Provenance(graph.family.name, graph.model, concept.name, f"record(token={token!r})"),
    )


def _check_arguments(graph: Any, concept: Any, batch_size: Any, seed: Any, **flags: Any) -> None:
    _checks.instance("graph", graph, HookGraph, "ns.HookGraph(pipe)")
    _checks.instance("concept", concept, Concept, 'ns.Concept.style("Van Gogh")')
    _checks.whole("batch_size", batch_size)
    _checks.seeds((seed, _checks.seed("seed", seed) + len(concept.present) - 1))
    for name, value in flags.items():
        _checks.flag(name, value)


def _outgoing(graph: HookGraph, sites: Sites) -> dict[str, Float[Tensor, "neuron"]]:
    """The norms of the weights that can be read; methods that need the others say so."""
    found = {}
    for site in sites:
        with contextlib.suppress(UnsupportedModel):
            found[site.path] = graph.outgoing_norm(site)
    return found


class _Tally:
    """The statistics of one arm while they grow."""

    def __init__(self, keep_samples: bool) -> None:
        self.moments: dict[str, Moments] = {}
        self._samples: dict[str, list[Tensor]] | None = {} if keep_samples else None

    def add(self, path: str, observations: Float[Tensor, "prompt *step neuron"]) -> None:
        try:
            batch = Moments.of(observations)
        except NonFiniteActivation as error:
            raise NonFiniteActivation(f"{path}: {error}") from None
        self.moments[path] = self.moments[path].merged(batch) if path in self.moments else batch
        if self._samples is not None:
            each = observations.mean(dim=1) if observations.ndim == 3 else observations
            self._samples.setdefault(path, []).append(each.detach().to("cpu", torch.float32))

    def joined(self) -> dict[str, Tensor]:
        return {path: torch.cat(batches) for path, batches in (self._samples or {}).items()}


@torch.no_grad()
def _record_text(graph: HookGraph, sites: Sites, prompts: Sequence[str], token: Token, subject: str, tally: _Tally) -> None:
    if not sites:
        return
    conditions = graph.conditions(prompts)
    chosen = torch.from_numpy(select_tokens(graph.tokenizer, prompts, token, subject)).to(conditions.context.device)
    for site, read in graph.read_each(sites, conditions):
        activation = graph.module(site)(read)
        tally.add(site.path, activation if activation.ndim == 2 else _average(activation, chosen))


def _average(activation: Float[Tensor, "prompt token neuron"], chosen: Bool[Tensor, "prompt token"]) -> Float[Tensor, "prompt neuron"]:
    weights = chosen.to(torch.float64)
    total = einops.einsum(activation.to(torch.float64), weights, "prompt token neuron, prompt token -> prompt neuron")
    return total / weights.sum(dim=1, keepdim=True)


def _record_denoised(
    graph: HookGraph, sites: Sites, prompts: Sequence[str], seed: int, by_step: bool, tally: _Tally, generation: Mapping[str, Any]
) -> None:
    seen: dict[str, dict[int, list[Tensor]]] = {path: {} for path in sites.paths}

    def keep(activation: Tensor, call: Call) -> None:
        rows = activation[call.rows("conditional", len(activation))].detach()
        mean = rows.to(torch.float64) if rows.ndim == 2 else rows.mean(dim=1, dtype=torch.float64)  # pooled text has no places
        seen[call.site.path].setdefault(call.step or 0, []).append(mean)

    with graph.observe(sites, keep):
        noise = [torch.Generator().manual_seed(seed + offset) for offset in range(len(prompts))]
        graph.pipe(prompt=list(prompts), generator=noise, **({"output_type": "latent"} | dict(generation)))
    for path, steps in seen.items():
        observations = torch.stack([torch.stack(calls).mean(dim=0) for _, calls in sorted(steps.items())], dim=1)
        tally.add(path, observations if by_step else observations.mean(dim=1))
