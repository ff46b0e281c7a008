"""Finding all members of a kind, so that no law forgets one."""

import inspect


def members(kind: type) -> list[type]:
    """The package's concrete classes of a kind, sorted by name."""
    found = {each for child in kind.__subclasses__() for each in (child, *members(child))}
    ours = {each for each in found if each.__module__.startswith("neuroscope.") and not inspect.isabstract(each)}
    return sorted(ours, key=lambda each: each.__name__)
