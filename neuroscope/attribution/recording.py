"""Recording: statistics of activations with and without a concept, one batch of prompts at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import einops
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from neuroscope.core import checks
from neuroscope.core.artifacts import Artifact, Provenance, take
from neuroscope.core.checks import finite_tensor, instance
from neuroscope.core.concepts import Concept
from neuroscope.core.errors import InvalidInput, NonFiniteActivation, choose, counted
from neuroscope.core.intervention import Call
from neuroscope.core.sharing.summary import Summary, binned
from neuroscope.core.sites import Site, Sites
from neuroscope.core.statistics import Moments
from neuroscope.core.tokens import TOKENS, Token
from neuroscope.generation.arguments import check_generation, refuse_set_here
from neuroscope.generation.image_inputs import spread_images
from neuroscope.pipeline.families import TEXT_OPTIONS, uncompiled
from neuroscope.pipeline.graph import HookGraph
from neuroscope.pipeline.weights import outgoing_norms

ARMS = ("present", "absent")
#: How many prompts `record` takes at a time by default.
BATCH_SIZE = 16
_SET_HERE = ("prompt", "prompt_2", "generator", "latents", "num_images_per_prompt")


@dataclass(frozen=True)
class Counts:
    """The number of prompts in each arm."""

    present: int
    absent: int


@dataclass(frozen=True)
class RecordingHeader:
    """What a file's header says of a recording beside the statistics."""

    sites: tuple[Site, ...]
    token: Token
    counts: Counts
    provenance: Provenance


@dataclass(frozen=True, eq=False)
class Recording(Artifact):
    """Statistics of each site's activations over prompts, in two arms: concept "present" and "absent".

    One prompt is one observation. At text-side sites it is the mean over the chosen tokens; at other sites the mean over the
    image's positions and over steps, or over positions alone if you record by step. A file holds means and sums of squares,
    so its size does not grow with the number of prompts, unless you keep samples.

    Attributes:
        sites: the recorded sites, in execution order.
        moments: for each arm and path, `Moments` of width [neuron], or [step, neuron] if recorded by step.
        samples: for each arm and path, every observation [prompt, neuron] as float32; empty unless asked for.
        outgoing: for each path, the norm of the weights that read each neuron [neuron]; without paths whose readers are quantised.
        token: the kind of token recorded at text-side sites.
        provenance: model and concept.

    Raises:
        InvalidInput: no site, statistics of other sites, sizes or counts, or numbers that are not finite.
    """

    kind: ClassVar[str] = "recording"
    header_type: ClassVar[type] = RecordingHeader

    sites: Sites
    moments: Mapping[str, Mapping[str, Moments]]
    samples: Mapping[str, Mapping[str, Float[Tensor, "prompt neuron"]]]
    outgoing: Mapping[str, Float[Tensor, "neuron"]]
    token: Token
    provenance: Provenance = Provenance()

    def __post_init__(self) -> None:
        instance("sites", self.sites, Sites, "graph.sites.where(layer=8)")
        if not self.sites:
            raise InvalidInput("the recording has no site; record at least one")
        choose("token", self.token, TOKENS)
        for arm in ARMS:
            _expect_same(f"moments of {arm}", self.moments.get(arm, {}), self.sites.paths)
            if len({each.count for each in self.moments[arm].values()}) > 1:
                raise InvalidInput(f"sites have different numbers of prompts in the arm {arm!r}; record them together, or apart")
            if self.samples:
                _expect_same(f"samples of {arm}", self.samples.get(arm, {}), self.sites.paths)
        for site in self.sites:
            self._check_sizes(site)

    def _check_sizes(self, site: Site) -> None:
        """Raises InvalidInput unless all that is kept of a site has its width."""
        steps = self.moments[ARMS[0]][site.path].mean.shape[:-1]
        kept = [("mean", self.moments[arm][site.path].mean, (*steps, site.width)) for arm in ARMS]
        for arm in ARMS if self.samples else ():
            values = finite_tensor(f"the samples of {site.path}", self.samples[arm][site.path], "prompt", "neuron")
            kept.append(("samples", values, (self.count(arm), site.width)))
        if site.path in self.outgoing:
            kept.append(
                ("outgoing", finite_tensor(f"the outgoing norms of {site.path}", self.outgoing[site.path], "neuron"), (site.width,))
            )
        for name, values, wanted in kept:
            if tuple(values.shape) != wanted:
                raise InvalidInput(f"{name} of {site.path} has shape {tuple(values.shape)}; give {wanted}")

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.count(arm)} {arm}" for arm in ARMS)
        return f"Recording({self.provenance.concept!r}: {counts} prompts, {counted(len(self.sites), 'site')}, token {self.token!r})"

    def summary(self) -> Summary:
        """See `Shown`: how far each neuron's means in both arms lie apart."""
        import pandas as pd

        present, absent = self.mean("present"), self.mean("absent")
        apart = {site: (present[site.path] - absent[site.path]).abs() for site in self.sites}
        rows = [(site.layer, site.role, site.width, float(each.max()), int(each.argmax()), site.path) for site, each in apart.items()]
        table = pd.DataFrame(rows, columns=["layer", "role", "neurons", "largest difference", "of neuron", "path"])
        heat = {site.label: binned(each) for site, each in apart.items()}
        return Summary.of(repr(self), table, heat, "difference of the means in both arms; neurons of each site, in their own order")

    def count(self, arm: str) -> int:
        """The number of prompts in an arm, "present" or "absent"; raises InvalidInput for another word."""
        return next(iter(self.moments[choose("arm", arm, ARMS)].values())).count

    def mean(self, arm: str) -> dict[str, Float[Tensor, "neuron"]]:
        """The mean activation of each neuron in an arm, by path, in float64; averaged over steps if recorded by step.

        Args:
            arm: "present" or "absent".
        """
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
    def from_parts(cls, tensors: Mapping[str, Tensor], header: RecordingHeader) -> Self:
        """See `Artifact`."""
        sites, double = Sites(header.sites), torch.float64

        def moments(arm: str, path: str) -> Moments:
            mean, deviation = (take(tensors, f"{arm}.{name}:{path}", double) for name in ("mean", "deviation"))
            return Moments(getattr(header.counts, arm), mean, deviation)

        sampled = {arm: [path for path in sites.paths if f"{arm}.samples:{path}" in tensors] for arm in ARMS}
        kept = {arm: {path: take(tensors, f"{arm}.samples:{path}", torch.float32) for path in paths} for arm, paths in sampled.items()}
        return cls(
            sites=sites,
            moments={arm: {path: moments(arm, path) for path in sites.paths} for arm in ARMS},
            samples={arm: found for arm, found in kept.items() if found},
            outgoing={path: take(tensors, key, double) for path in sites.paths if (key := f"outgoing:{path}") in tensors},
            token=header.token,
            provenance=header.provenance,
        )


def _expect_same(what: str, given: Mapping[str, Any], paths: Iterable[str]) -> None:
    """Raises InvalidInput where something is missing for a site, or given for a path that is no site."""
    if differing := sorted(given.keys() ^ set(paths)):
        raise InvalidInput(f"{what} and sites differ in {differing[0]}; give them for every site and for no other")


def record(
    graph: HookGraph,
    concept: Concept,
    sites: Iterable[Site] | Site | None = None,
    token: Token = "last",
    *,
    by_step: bool = False,
    keep_samples: bool = False,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    quiet: bool = False,
    **generation: Any,
) -> Recording:
    """Records activations of the concept's present and absent prompts.

    Keys and values depend on the prompt alone: they are computed from the text encoder, without a run of the denoiser. For
    other sites the pipeline runs, `batch_size` prompts at a time; only conditional rows are recorded, averaged over the image's
    positions.

    Args:
        graph: the model.
        concept: its prompts.
        sites: which sites, one or several; by default all keys and values.
        token: which token of the prompt text-side sites are read at; see `select_tokens`. Where the model's attention is masked (PixArt),
            tokens that it does not see are left out, and "last" is the last one that it sees.
        by_step: keep the moments of each denoising step apart, for sites that need denoising.
        keep_samples: also keep every observation, as rank statistics need; memory then grows with the prompts.
        batch_size: prompts at a time.
        seed: prompt number i starts from the noise of `seed + i`, the same in both arms.
        quiet: show no progress bar.
        **generation: passed to the pipeline, such as `num_inference_steps`; sites that depend on the prompt alone follow
            `clip_skip` and `clean_caption` of them, and recorded alone they refuse others. An image is given once, for all prompts.

    Returns:
        Moments of both arms in float64, with the norms of the weights that read each neuron.

    Raises:
        InvalidInput: no site, an unknown token, `by_step` without sites that need denoising, a value of another kind, or an option
            that the pipeline does not have.
        UnknownSite: the model lacks one of the sites.
        NonFiniteActivation: an activation is NaN or infinite; the message names its site.
    """
    _check_arguments(graph, concept, batch_size, seed, by_step=by_step, keep_samples=keep_samples, quiet=quiet)
    refuse_set_here(generation, (*_SET_HERE, *graph.family.conditional_arguments))
    check_generation(graph.pipe, generation, record)
    choose("token", token, TOKENS)
    given = None if sites is None else checks.several("sites", sites, Site, "graph.sites.where(layer=8)")
    chosen = graph.sites.where(role=("key", "value")) if given is None else graph.sites.at(site.path for site in given)
    if not chosen:
        raise InvalidInput("there is no site to record; choose some with graph.sites.where(...)")
    text, denoised = chosen.where(text_only=True), chosen.where(text_only=False)
    if by_step and text:
        raise InvalidInput(f"by_step has no meaning for {text[0].path}, which is the same at every step; record it apart")
    if text:
        _refuse_unused(text[0], bool(denoised), generation)
    arms = {}
    for arm in ARMS:
        prompts = getattr(concept, arm)
        tally = _Tally(keep_samples)
        with tqdm(total=len(prompts), desc=f"recording {concept.name}: {arm}", unit="prompt", disable=quiet) as bar:
            for first in range(0, len(prompts), batch_size):
                batch = prompts[first : first + batch_size]
                _record_text(graph, text, batch, token, concept.name, tally, graph.text.options(generation))
                if denoised:
                    _record_denoised(graph, denoised, batch, seed + first, by_step, tally, generation)
                bar.update(len(batch))
        arms[arm] = tally
    return Recording(
        sites=chosen,
        moments={arm: tally.moments for arm, tally in arms.items()},
        samples={arm: tally.joined() for arm, tally in arms.items()} if keep_samples else {},
        outgoing=outgoing_norms(graph.family, uncompiled(graph.denoiser), chosen),
        token=token,
        provenance=Provenance(graph.family.name, graph.model, concept.name, f"record(token={token!r})", concept.contrast),
    )


def _check_arguments(graph: Any, concept: Any, batch_size: Any, seed: Any, **flags: Any) -> None:
    checks.instance("graph", graph, HookGraph, "ns.HookGraph(pipe)")
    checks.instance("concept", concept, Concept, 'ns.Concept.style("Van Gogh")')
    checks.whole("batch_size", batch_size)
    checks.seeds((seed, checks.seed("seed", seed) + len(concept.present) - 1))
    for name, value in flags.items():
        checks.flag(name, value)


class _Tally:
    """The statistics of one arm, to which batches are added."""

    def __init__(self, keep_samples: bool) -> None:
        self.moments: dict[str, Moments] = {}
        self._samples: dict[str, list[Tensor]] | None = {} if keep_samples else None

    def add(self, path: str, observations: Float[Tensor, "prompt *step neuron"]) -> None:
        """Adds a batch of a site; raises NonFiniteActivation, with the site's path, for NaN and infinity."""
        try:
            batch = Moments.of(observations)
        except NonFiniteActivation as error:
            raise NonFiniteActivation(f"{path}: {error}") from None
        self.moments[path] = self.moments[path].merged(batch) if path in self.moments else batch
        if self._samples is not None:
            each = observations.mean(dim=1) if observations.ndim == 3 else observations
            self._samples.setdefault(path, []).append(each.detach().to("cpu", torch.float32))

    def joined(self) -> dict[str, Tensor]:
        """All samples by path, float32 [prompt, neuron]; empty unless they are kept."""
        return {path: torch.cat(batches) for path, batches in (self._samples or {}).items()}


def _refuse_unused(site: Site, denoising: bool, generation: Mapping[str, Any]) -> None:
    """Raises InvalidInput for options of the pipeline that a site which is computed without a run would ignore."""
    unused = ["cross_attention_kwargs"] if denoising else sorted({*generation} - {*TEXT_OPTIONS, "max_sequence_length"})
    for name in unused:
        if name not in generation or generation[name] is None:
            continue
        if name == "cross_attention_kwargs":
            instead = "set the scale of a LoRA with pipe.set_adapters(name, scale)"
        else:
            instead = "leave it out, or record sites that need denoising as well"
        raise InvalidInput(
            f"{name} would not be followed at {site.path}, which depends on the prompt alone and is recorded without a run; {instead}"
        )


@torch.no_grad()
def _record_text(
    graph: HookGraph, sites: Sites, prompts: Sequence[str], token: Token, subject: str, tally: _Tally, options: Mapping[str, Any]
) -> None:
    """Adds what text-side sites make of the prompts, without a run."""
    if not sites:
        return
    conditions = graph.text.conditions(prompts, **options)
    chosen = conditions.seen(torch.from_numpy(graph.text.select_tokens(prompts, token, subject)))
    for site, read in graph.text.read_each(sites, conditions):
        activation = graph.module(site)(read)
        if activation.ndim == 3:
            activation = _average(activation, graph.text.positions(site, chosen, activation.shape[1]))
        tally.add(site.path, activation)


def _average(activation: Float[Tensor, "prompt token neuron"], chosen: Bool[Tensor, "prompt token"]) -> Float[Tensor, "prompt neuron"]:
    """The mean over each prompt's chosen tokens, in float64."""
    weights = chosen.to(activation.device, torch.float64)
    total = einops.einsum(activation.to(torch.float64), weights, "prompt token neuron, prompt token -> prompt neuron")
    return total / weights.sum(dim=1, keepdim=True)


def _record_denoised(
    graph: HookGraph, sites: Sites, prompts: Sequence[str], seed: int, by_step: bool, tally: _Tally, generation: Mapping[str, Any]
) -> None:
    """Adds what the sites' conditional rows are in one run of the prompts; calls of one step are averaged before steps are."""
    seen: dict[str, dict[int, list[Tensor]]] = {path: {} for path in sites.paths}

    def keep(activation: Tensor, call: Call) -> None:
        rows = activation[call.rows("conditional", len(activation))].detach()
        if len(rows):  # perturbed-attention guidance has two rows for each prompt, the others one
            mean = rows.to(torch.float64) if rows.ndim == 2 else rows.mean(dim=1, dtype=torch.float64)  # pooled text has no places
            seen[call.site.path].setdefault(call.step or 0, []).append(mean.unflatten(0, (-1, len(prompts))).mean(dim=0))

    options = {"output_type": "latent"} | spread_images(graph.pipe, generation, len(prompts))
    if isinstance(options.get("negative_prompt"), str):
        options["negative_prompt"] = [options["negative_prompt"]] * len(prompts)
    with graph.observe(sites, keep):
        noise = [torch.Generator().manual_seed(seed + offset) for offset in range(len(prompts))]
        graph.pipe(prompt=list(prompts), generator=noise, **options)
    for path, steps in seen.items():
        observations = torch.stack([torch.stack(calls).mean(dim=0) for _, calls in sorted(steps.items())], dim=1)
        tally.add(path, observations if by_step else observations.mean(dim=1))
