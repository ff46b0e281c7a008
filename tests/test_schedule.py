"""Steps are those of `num_inference_steps` as run, with every scheduler and wherever in the schedule a run begins and ends."""

import inspect

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline

from neuroscope import HookGraph, InvalidInput, NeuronMask, Neurons, SiteNeverRan
from tests.families import tiny

STEPS = 6
#: What PNDM's first steps take; see its paper (Liu et al. 2022), algorithm 2.
RUNGE_KUTTA = 4
NEEDS_TORCHSDE = "DPMSolverSDEScheduler"


def compatible() -> dict[str, tuple[type, dict]]:
    every = sorted(DDIMScheduler().compatibles, key=lambda each: each.__name__)
    found: dict[str, tuple[type, dict]] = {each.__name__: (each, {}) for each in every if each.__name__ != NEEDS_TORCHSDE}
    karras = {
        f"{name} Karras": (kind, {"use_karras_sigmas": True})
        for name, (kind, _) in found.items()
        if "use_karras_sigmas" in inspect.signature(kind.__init__).parameters
    }
    return found | karras | {"PNDMScheduler PRK": (PNDMScheduler, {"skip_prk_steps": False}), "DDIMScheduler": (DDIMScheduler, {})}


SCHEDULERS = compatible()


def scheduler_of(name: str):
    kind, options = SCHEDULERS[name]
    return kind.from_config(tiny.SCHEDULE, **({"skip_prk_steps": True} if kind is PNDMScheduler else {}) | options)


class Truth:
    """The step of every call of the denoiser, by the state that the scheduler itself is in."""

    def __init__(self, pipe):
        self.steps, self._pipe, self._last = [], pipe, None

    def __call__(self, _module, args, _kwargs):
        scheduler, timestep = self._pipe.scheduler, float(args[1])
        if hasattr(scheduler, "state_in_first_order"):
            begins = scheduler.state_in_first_order
        elif isinstance(scheduler, PNDMScheduler) and len(scheduler.prk_timesteps):
            begins = scheduler.counter >= len(scheduler.prk_timesteps) or scheduler.counter % RUNGE_KUTTA == 0
        else:  # PNDM calls again at the timestep before
            begins = not isinstance(scheduler, PNDMScheduler) or timestep != self._last
        self._last = timestep
        self.steps.append(len({*self.steps}) - (not begins))


def run(pipe, image=None, **options):
    given = {"image": image} if image is not None else {"height": 16, "width": 16}
    noise = torch.Generator().manual_seed(0)
    return pipe(tiny.PROMPT, num_inference_steps=STEPS, output_type="latent", generator=noise, **given, **options).images


def seen(graph, truth, **options) -> tuple[list, list]:
    calls = []
    with graph.observe(graph.sites.where(layer=8, role="value"), lambda _activation, call: calls.append(call)):
        handle = graph.denoiser.register_forward_pre_hook(truth, with_kwargs=True)
        try:
            run(graph.pipe, **options)
        finally:
            handle.remove()
    return [call.step for call in calls], [call.steps for call in calls]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_counts_its_own_steps(pipe, name):
    graph = HookGraph(tiny.with_parts(pipe, scheduler=scheduler_of(name)))
    truth = Truth(graph.pipe)
    steps, counts = seen(graph, truth)
    assert steps == truth.steps
    assert steps[0] == 0
    assert set(counts) == {STEPS} == {steps[-1] + 1}


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "EDMEulerScheduler"])  # which takes no image
@pytest.mark.parametrize("strength", [0.5, pytest.param(1.0, marks=pytest.mark.slow)])
def test_a_run_that_begins_later_counts_what_it_makes(pipe, name, strength):
    parts = {each: part for each, part in pipe.components.items() if each != "image_encoder"}
    changed = StableDiffusionImg2ImgPipeline(**parts | {"scheduler": scheduler_of(name)}, requires_safety_checker=False)
    changed.set_progress_bar_config(disable=True)
    graph = HookGraph(changed)
    truth = Truth(changed)
    steps, counts = seen(graph, truth, image=torch.zeros(1, 3, 32, 32), strength=strength)
    assert steps == truth.steps
    assert set(counts) == {truth.steps[-1] + 1}
    assert set(counts) == {round(strength * STEPS)} or isinstance(changed.scheduler, PNDMScheduler)  # whose list of timesteps is longer


@pytest.fixture(scope="module")
def sdxl():
    base = tiny.PIPELINES["sdxl"]()
    changed = StableDiffusionXLImg2ImgPipeline.from_pipe(base)
    changed.set_progress_bar_config(disable=True)
    return base, changed


@pytest.mark.parametrize("kind", [pytest.param("EulerDiscreteScheduler", marks=pytest.mark.slow), "HeunDiscreteScheduler"])
def test_the_two_halves_of_a_shared_schedule_count_apart(sdxl, kind):
    counts = []
    for pipe, options in zip(sdxl, ({"denoising_end": 0.5}, {"denoising_start": 0.5, "image": torch.zeros(1, 4, 8, 8)}), strict=True):
        pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
        graph, calls = HookGraph(pipe), []
        with graph.observe(graph.sites.where(layer=0, role="value"), lambda _activation, call, calls=calls: calls.append(call)):
            run(pipe, **options)
        assert [call.step for call in calls] == sorted(call.step for call in calls)
        assert {call.step for call in calls} == set(range(calls[0].steps))
        counts.append(calls[0].steps)
    assert sum(counts) in (STEPS, STEPS + 1)  # diffusers rounds to whole steps


def test_a_part_of_the_steps_is_a_part_of_what_the_run_makes(pipe):
    """At half strength the first half of the steps is the first half of the three that are run."""
    changed = StableDiffusionImg2ImgPipeline(
        **{name: part for name, part in pipe.components.items() if name != "image_encoder"}, requires_safety_checker=False
    )
    changed.set_progress_bar_config(disable=True)
    graph = HookGraph(changed)
    (site,) = graph.sites.where(layer=8, role="value")
    options = {"image": torch.zeros(1, 3, 32, 32), "strength": 2 / 3}
    plain = run(changed, **options)
    parts = {}
    for steps in ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0)):
        with graph.apply(NeuronMask(Neurons.at(graph.sites, {site.path: range(8)}), fill=2.0, steps=steps)):
            parts[steps] = run(changed, **options)
    assert all(not torch.equal(plain, each) for each in parts.values())
    with (
        pytest.raises(SiteNeverRan, match="no denoising step lies in the part of the schedule"),
        graph.apply(NeuronMask(Neurons.at(graph.sites, {site.path: [0]}), fill=2.0, steps=(0.1, 0.2))),
    ):
        run(changed, **options)


def test_a_denoiser_that_leaves_its_schedule_has_no_steps(fresh):
    """A pipeline that goes back in its schedule, as some video and inversion pipelines do."""

    class Back(type(fresh)):
        def __call__(self, *args, **options):
            self.scheduler.set_timesteps(4)
            self.encode_prompt("", "cpu", 1, False)
            context = self.encode_prompt(args[0], "cpu", 1, False)[0]
            for timestep in (self.scheduler.timesteps[0], self.scheduler.timesteps[0]):
                latents = torch.zeros(1, 4, 16, 16, dtype=self.dtype)
                noise = self.unet(latents, timestep, encoder_hidden_states=context).sample
                self.scheduler.step(noise, timestep, latents)

    pipe = Back(**fresh.components, requires_safety_checker=False)
    graph = HookGraph(pipe)
    (site,) = graph.sites.where(layer=8, role="value")
    mask = NeuronMask(Neurons.at(graph.sites, {site.path: [0]}), steps=(0.0, 0.5))
    message = "needs a pipeline's schedule, but the denoiser was called at a timestep that is not the schedule's next"
    with pytest.raises(InvalidInput, match=message), graph.apply(mask), torch.no_grad():
        pipe(tiny.PROMPT)
