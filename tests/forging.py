"""Files that were changed by somebody who knows their checksum."""

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from neuroscope.core.storage import checksum

Parts = tuple[dict[str, Tensor], dict[str, Any]]


def parts_of(path: Path) -> Parts:
    """A file's tensors and its header."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["neuroscope"])


def write_parts(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """A file of these parts, with a checksum that is right if there can be one."""
    with contextlib.suppress(ValueError):  # NaN, of which no checksum is defined
        header = {**header, "sha256": checksum(header, tensors)}
    save_file({name: each.contiguous().clone() for name, each in tensors.items()}, path, {"neuroscope": json.dumps(header)})
    return path


def forge(path: Path, change: Callable[[str], str]) -> Path:
    """The file with the header's text and the tensors' names changed."""
    tensors, header = parts_of(path)
    return write_parts(path, {change(name): each for name, each in tensors.items()}, json.loads(change(json.dumps(header))))
