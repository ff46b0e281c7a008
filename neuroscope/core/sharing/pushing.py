"""What is pushed to the hub: the result, its card, the card's images and a LoRA that does the same."""

from __future__ import annotations

import abc
import io
import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from PIL.Image import Image

from neuroscope.core import checks
from neuroscope.core.errors import InvalidFile, InvalidInput
from neuroscope.core.sharing import card, hub
from neuroscope.core.sharing.summary import Shown

#: What diffusers looks for where `load_lora_weights` is given a repository.
LORA = "pytorch_lora_weights.safetensors"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Pushable(Shown, abc.ABC):
    """What can be pushed to the hub: it has a file and a summary."""

    @abc.abstractmethod
    def to_file(self) -> tuple[bytes, dict[str, Any]]:
        """The bytes of its file, and the header without the checksum."""

    def push_to_hub(
        self,
        repository: str,
        *,
        base_model: str = "",
        licence: str = "",
        images: Mapping[str, Image] = MappingProxyType({}),
        lora: str | os.PathLike[str] | None = None,
        private: bool = False,
        revision: str | None = None,
    ) -> str:
        """Writes this with a model card to a repository of the Hugging Face hub; `ns.load("owner/name")` reads it.

        Args:
            repository: `owner/name` without a suffix; it is made if it is not there.
            base_model: the hub's name of the model that this is for; by default its own model's, if that is a name of the hub.
            licence: its short name on the hub, such as "mit".
            images: by name, images for the card, such as `{"before": one, "after": other}`.
            lora: a LoRA file that does the same, as `export_lora` writes it, to be pushed beside it.
            private: whether a repository that is made can be read by its owner alone.
            revision: a branch; by default the main one.

        Returns:
            The repository's address.

        Raises:
            InvalidInput: a name that no repository has, or an argument of another kind.
            InvalidFile: the hub cannot be reached, or does not let you write there.
        """
        for name, value, example in (("base_model", base_model, '"owner/name"'), ("licence", licence, '"mit"')):
            checks.instance(name, value, str, example)
        hub.expect_repository(checks.instance("repository", repository, str, '"me/no-van-gogh"'))
        checks.flag("private", private)
        given = checks.instance("images", images, Mapping, '{"before": image}')
        shown = {f"{_named(name)}.png": _png(image) for name, image in given.items()}
        beside = {} if lora is None else {LORA: _read(lora)}
        data, header = self.to_file()
        about = {"base_model": base_model, "licence": licence, "lora": next(iter(beside), "")}
        text = card.text(repository, header, self.summary(), images=tuple(shown), **about)
        return hub.upload(repository, {hub.FILE: data, "README.md": text.encode(), **shown, **beside}, private=private, revision=revision)


def _named(name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInput(f"{name!r} names no image of a card; use letters, digits, - and _, such as 'before'")
    return name


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    checks.instance("an image of the card", image, Image, "what ns.generate gives").save(buffer, format="PNG")
    return buffer.getvalue()


def _read(lora: str | os.PathLike[str]) -> bytes:
    path = checks.path("lora", lora)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidFile(f"the LoRA file {path} cannot be read: {error.strerror}; give what ns.export_lora returns") from error
