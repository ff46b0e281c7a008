"""Checks of what the pipeline is to be called with: names against its own parameters, and values that no pipeline can use.

diffusers' pipelines take `**kwargs`, so that a mistyped name would be passed on and ignored.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

from neuroscope.core import checks
from neuroscope.core.errors import InvalidInput, closest, counted
from neuroscope.pipeline.graph import HookGraph

#: Pixels a side; published models make no more, and a machine runs out of memory soon after.
LARGEST_SIDE = 4096
#: Names in other tools for what diffusers calls otherwise, where spelling alone does not lead there.
_ALIASES = {
    "n_steps": "num_inference_steps",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "seed": "seeds",
    "n": "seeds",
}
_RANGES: dict[str, dict[str, float]] = {"guidance_scale": {"least": 0}, "strength": {"least": 0, "most": 1}}


def check_generation(pipe: Any, options: Mapping[str, Any], verb: Callable[..., Any] | None = None) -> None:
    """Checks the options of a pipeline's call before anything runs.

    Args:
        pipe: the pipeline.
        options: what it is to be called with.
        verb: the function that they were given to, whose own options a mistyped name may mean too.

    Raises:
        InvalidInput: a name that the pipeline's call does not have, NaN or infinity, something else than a number where its default is
            one, a number of steps that its schedule does not have, or a size that it does not make.
    """
    known = _parameters_of_call(type(pipe))
    mine = named_parameters(verb) if verb else {}
    for name, value in options.items():
        if name not in known:
            near = _near(name, [*known, *mine])
            raise InvalidInput(f"{type(pipe).__name__} takes no {name}, so it would be ignored{near or '; leave it out'}")
        _check_number(name, value, known[name].default)
    unit = math.lcm(8, int(getattr(pipe, "vae_scale_factor", 1))) if getattr(pipe, "vae", None) is not None else 1
    check_values(options, unit=unit, most_steps=_most_steps(pipe))


def check_values(options: Mapping[str, Any], *, unit: int = 1, most_steps: float = math.inf) -> None:
    """Checks values that no pipeline can use, whatever its names.

    Args:
        options: what a pipeline is to be called with.
        unit: pixels; height and width are multiples of it.
        most_steps: how many steps the noise schedule has.

    Raises:
        InvalidInput: a number of steps or a size that is none, or a height without a width.
    """
    if options.get("num_inference_steps") is not None:
        checks.whole("num_inference_steps", options["num_inference_steps"], least=1, most=most_steps)
    given = {name: options[name] for name in ("height", "width") if options.get(name) is not None}
    if len(given) == 1:
        (name,) = given
        other = "width" if name == "height" else "height"
        raise InvalidInput(
            f"{name}={checks.shown(given[name])} is given without {other}, and pipelines then take their own size for both; give both"
        )
    for name, value in given.items():
        if checks.whole(name, value, least=unit, most=LARGEST_SIDE) % unit:
            raise InvalidInput(
                f"{name}={value} is no multiple of {counted(unit, 'pixel')}, as this pipeline needs; give one, such as {8 * unit}"
            )


def steps_of(pipe: Any, options: Mapping[str, Any]) -> int | None:
    """The steps of a run with these options; None where they are given one by one, or where the pipeline does not say."""
    if options.get("timesteps") is not None or options.get("sigmas") is not None:
        return None
    parameter = _parameters_of_call(type(pipe)).get("num_inference_steps")
    found = options.get("num_inference_steps", parameter.default if parameter else None)
    return found if isinstance(found, int) else None


def check_fits(pipe: Any, generation: Mapping[str, Any], method: Any, count: int, noun: str) -> None:
    """Refuses more steps than each run has, or more exact effects than there are layers or neurons.

    A method's own defaults are never refused.

    Args:
        pipe: the pipeline that makes the runs.
        generation: options of its call.
        method: a method with the options `steps` and `fidelity`.
        count: how many layers or neurons it scores.
        noun: "layer" or "neuron", for the message.

    Raises:
        InvalidInput: `steps` or `fidelity` is too large.
    """
    run = steps_of(pipe, generation)
    if run is not None and method.steps > max(run, type(method).steps):
        raise InvalidInput(f"steps={method.steps} are more than the {counted(run, 'step')} of the run; give at most these")
    if method.fidelity > max(count, type(method).fidelity):
        raise InvalidInput(f"fidelity={method.fidelity} are more than the model's {counted(count, noun)}; give at most these")


def refuse_set_here(options: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Raises InvalidInput for an option of the pipeline that is set for each image."""
    if taken := sorted(set(options) & set(names)):
        raise InvalidInput(f"{taken[0]} is set for each image here; give only options that all images share")


def _parameters_of_call(kind: type) -> dict[str, inspect.Parameter]:
    """What a pipeline's call names; of one that hands the rest on to the class that it extends, what that names too."""
    found: dict[str, inspect.Parameter] = {}
    for each in kind.__mro__:
        if "__call__" in vars(each):
            found = named_parameters(vars(each)["__call__"]) | found
    return found


def named_parameters(call: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that a caller may name, without `self` and what `*args` and `**kwargs` take."""
    catching = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(call).parameters
    return {name: each for name, each in found.items() if name != "self" and each.kind not in catching}


def _near(name: str, known: list[str]) -> str:
    meant = _ALIASES.get(name)
    if meant in known:
        return f"; did you mean {meant!r}?"
    words = set(name.split("_"))
    longer = [each for each in known if words < set(each.split("_"))]
    return f"; did you mean {min(longer, key=len)!r}?" if longer else closest(name, known)


def _check_number(name: str, value: Any, default: Any) -> None:
    """A number, or numbers, where the default is one; a truth value where it is one; and no number that is not finite."""
    if isinstance(default, bool):
        checks.flag(name, value)
    elif isinstance(default, int | float) or (isinstance(value, Real) and not isinstance(value, bool)):
        for each in value if isinstance(value, list | tuple) else (value,):
            checks.finite(name, each, **_RANGES.get(name, {}))
    elif isinstance(value, list | tuple):
        for each in value:
            _check_number(name, each, None)


def _most_steps(pipe: Any) -> float:
    """The steps that the noise schedule has, less those that its offset moves past its end."""
    config = getattr(getattr(pipe, "scheduler", None), "config", {})
    result: float = config.get("num_train_timesteps", math.inf) - config.get("steps_offset", 0)
    return result


def choose_layers(graph: HookGraph, layers: Iterable[int] | int | None) -> tuple[int, ...] | None:
    """Chosen layers as a tuple, or None for all.

    Raises:
        InvalidInput: what is no layer, a layer that the model lacks, or an empty list.
    """
    if layers is None:
        return None
    chosen = checks.layers("layers", layers)
    if not chosen:
        raise InvalidInput("layers is empty, so no neuron is left; give layers, or None for all")
    graph.sites.where(layer=chosen)
    return chosen


def check_options(pairs: Any, keep_images: Any, batch_size: Any, quiet: Any) -> None:
    """Raises InvalidInput for a value of another kind in what `localize` and `rank` take beside the pipeline's options."""
    for name, value in (("pairs", pairs), ("batch_size", batch_size)):
        if value is not None:
            checks.whole(name, value, least=-math.inf)
    checks.whole("keep_images", keep_images, least=0)
    checks.flag("quiet", quiet)
