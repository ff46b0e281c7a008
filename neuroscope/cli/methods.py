"""Methods and metrics as they are written in Python, such as "LocoGen(window=2)". The text is parsed, and never evaluated.

The known names are those of the classes: a new method or metric needs no line here.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, cast

from neuroscope.core.errors import InvalidInput, NeuroscopeError, closest, counted

if TYPE_CHECKING:
    from neuroscope.cli.options import ModelOptions
    from neuroscope.metrics.metric import Metric

Made = TypeVar("Made")
#: In characters. Whole numbers in a text of this length have no more digits than Python writes.
LONGEST = 2_000
_NAME = re.compile(r"[\w-]+")
#: What Python's parser raises for text that it does not take.
_UNREADABLE = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)


def build(what: str, text: str, kinds: Mapping[str, type[Made]]) -> Made:
    """The object that a text names, such as "LocoGen" or "LocoGen(window=2)".

    Args:
        what: what it is called in messages, such as "method".
        text: the name of a class, alone or called with keywords whose values are numbers, strings, True, False, None, or lists,
            tuples, sets and dicts of these.
        kinds: the classes by their names.

    Raises:
        InvalidInput: an unknown name or keyword, a missing one, anything else than such a text, or a value that the class refuses.
    """
    name, values = _read(what, text, kinds)
    kind = kinds[_known_name(what, name, kinds)]
    options = _options(kind)
    for each in values:
        if each not in options:
            has = f"it has {', '.join(options)}" if options else "it has none"
            raise InvalidInput(f"{each!r} is no option of {name}; {has}{closest(each, options)}")
    needed = [each.name for each in options.values() if each.default is MISSING and each.default_factory is MISSING]
    if missing := [each for each in needed if each not in values]:
        raise InvalidInput(f"{what} {name} needs {' and '.join(missing)}; write {name}({', '.join(f'{each}=…' for each in needed)})")
    try:
        return kind(**values)
    except NeuroscopeError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InvalidInput(f"{text!r:.80} has a value of another kind than {name} takes: {error}; see its documentation") from error


def subclasses(base: type[Made], *rooms: str) -> dict[str, type[Made]]:
    """The package's public classes of a kind that can be made, by name, in alphabetical order.

    Args:
        base: the class of which they are subclasses.
        *rooms: the packages that define them, which are imported first.
    """
    found: dict[str, type[Made]] = {}
    for room in rooms:
        import_module(room)
    for each in base.__subclasses__():
        found |= subclasses(each)
        if each.__module__.startswith("neuroscope.") and not each.__name__.startswith("_") and not inspect.isabstract(each):
            found[each.__name__] = each
    return dict(sorted(found.items()))


def neuron_methods(*, causal: bool = True, response: bool = True) -> dict[str, type[Any]]:
    """The methods that score neurons, by name: by what they do, by how they respond, or both."""
    from neuroscope.attribution import Attribution, CausalAttribution

    bases: list[Any] = [CausalAttribution] * causal + [Attribution] * response
    return dict(sorted((name, kind) for base in bases for name, kind in subclasses(base).items()))


def refuse_neuron_methods(text: str) -> None:
    """Raises InvalidInput where `localize` is given a method that scores neurons."""
    if (name := _leading_name(text)) in neuron_methods():
        raise InvalidInput(f"{name} ranks neurons, and localize finds layers; write neuroscope rank --method {shlex.quote(text)}")


def refuse_layer_methods(text: str) -> None:
    """Raises InvalidInput where `rank` is given a method that scores layers."""
    from neuroscope.localization import Localization

    if (name := _leading_name(text)) in subclasses(cast("Any", Localization)):
        raise InvalidInput(f"{name} finds layers, and rank ranks neurons; write neuroscope localize --method {shlex.quote(text)}")


def _leading_name(text: str) -> str:
    return text.partition("(")[0].strip()


def metrics() -> dict[str, type[Any]]:
    """The package's metrics by name, in alphabetical order: dataclasses that have a name and can be called."""
    from neuroscope import metrics, testbed

    public = {name: vars(module).get(name) for module in (metrics, testbed) for name in module.__all__}
    return {name: value for name, value in sorted(public.items()) if value is not None and _is_metric(value)}


def metric(text: str, model: ModelOptions) -> Any:
    """The metric of `--metric`, written as in Python, such as "ClipScore(text='the style of Van Gogh')".

    Raises:
        InvalidInput: it is none, or one of the testbed's images for another model.
    """
    from neuroscope.testbed import Reader

    made = build("metric", text, metrics())
    if isinstance(made, Reader):
        _expect_bundled("Reader", model)
    return made


def reader(text: str, model: ModelOptions) -> Metric:
    """The testbed's exact reader of --read ATTRIBUTE=VALUE; raises InvalidInput for other text, and for another model."""
    from neuroscope.testbed import Reader
    from neuroscope.testbed.world import ATTRIBUTES

    attribute, _, value = text.partition("=")
    if not value or attribute not in ATTRIBUTES:
        raise InvalidInput(f"--read {text!r} is not ATTRIBUTE=VALUE; attributes: {', '.join(ATTRIBUTES)}")
    _expect_bundled("--read", model)
    return Reader(attribute, value)


def _expect_bundled(what: str, model: ModelOptions) -> None:
    if not model.bundled:
        raise InvalidInput(f"{what} works on the testbed's images, not on {model.model}; use --clip TEXT")


def _is_metric(value: Any) -> bool:
    return inspect.isclass(value) and is_dataclass(value) and hasattr(value, "name") and "__call__" in vars(value)


def _read(what: str, text: str, kinds: Mapping[str, type]) -> tuple[str, dict[str, Any]]:
    """A name and the values of the keywords that it is called with."""
    if len(text) > LONGEST:
        raise InvalidInput(f"{what} {text!r:.40}… is {counted(len(text), 'character')} long; give at most {LONGEST:,}")
    text = text.strip()
    if _NAME.fullmatch(text):
        return text, {}
    call = _parsed(text)
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise InvalidInput(
            f"{what} {text!r:.80} is not written as in Python; give a name, alone or with keywords, such as {_example(kinds)}"
        )
    name = _known_name(what, call.func.id, kinds)
    values: dict[str, Any] = {}
    for keyword in [*(ast.keyword(None, each) for each in call.args), *call.keywords]:
        if keyword.arg is None:
            raise InvalidInput(f"{what} {name} takes keywords only; write each value as in {_example({name: kinds[name]})}")
        if keyword.arg in values:
            raise InvalidInput(f"{keyword.arg!r} is given twice to {name}; give it once")
        values[keyword.arg] = _value(name, keyword.arg, keyword.value)
    return name, values


def _parsed(text: str) -> ast.expr | None:
    """The expression that a text is; None where it is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text, mode="eval").body
        except _UNREADABLE:
            return None


def _value(name: str, keyword: str, node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except _UNREADABLE:
        kinds = "a number, a text in quotes, True, False, None, or a list or tuple of these"
        raise InvalidInput(f"{keyword} of {name} is no plain value; give {kinds}") from None


def _known_name(what: str, name: str, kinds: Mapping[str, type]) -> str:
    """`name` itself if it is known; near names are found whatever their case and hyphens."""
    if name not in kinds:
        folded = {_folded(each): each for each in kinds}
        near = difflib.get_close_matches(_folded(name), folded, n=1, cutoff=0.5)
        hint = f"; did you mean {folded[near[0]]!r}?" if near else ""
        raise InvalidInput(f"{what} {name!r:.80} is unknown; choose one of {', '.join(kinds)}{hint}")
    return name


def _folded(name: str) -> str:
    return re.sub("[-_]", "", name).lower()


def _example(kinds: Mapping[str, type]) -> str:
    """A call with one keyword, of the first class that has one with a default."""
    options = ((name, each) for name, kind in kinds.items() for each in _options(kind).values() if each.default is not MISSING)
    return next((f"{name}({each.name}={each.default!r})" for name, each in options), f"{next(iter(kinds))}()")


def _options(kind: Any) -> dict[str, Field[Any]]:
    """What a class is called with, by name."""
    return {each.name: each for each in fields(kind) if each.init}
