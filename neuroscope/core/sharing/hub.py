"""The Hugging Face hub: one repository holds one result and its card. All traffic is huggingface_hub's own.

Tokens, proxies, the cache and the hub's address are read from huggingface_hub's environment (`HF_TOKEN`, `HF_HOME`, `HF_ENDPOINT`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from neuroscope.core.errors import InvalidFile, InvalidInput

if TYPE_CHECKING:
    from huggingface_hub import HfApi

#: What a result is called in its repository.
FILE = "neuroscope.safetensors"
#: `owner/name`, without a suffix, which would be a file's.
_REPOSITORY = re.compile(r"(?!.*--)[A-Za-z0-9][A-Za-z0-9_-]*/[A-Za-z0-9][A-Za-z0-9_-]*")
_LONGEST = 96
_log = logging.getLogger(__name__)


def is_repository(name: str | os.PathLike[str]) -> bool:
    """Whether this names a repository of the hub: `owner/name` without a suffix, where no such path exists here."""
    text = os.fspath(name)
    return _is_name(text) and not os.path.lexists(text)


def expect_repository(name: str) -> None:
    """Raises InvalidInput for what is no `owner/name` without a suffix."""
    if not _is_name(name):
        raise InvalidInput(f"{name!r} is no repository of the hub; write owner/name of letters, digits, - and _, such as 'me/no-van-gogh'")


def _is_name(text: str) -> bool:
    return len(text) <= _LONGEST and bool(_REPOSITORY.fullmatch(text))


def download(repository: str, revision: str | None = None) -> Path:
    """The result of a repository, in huggingface_hub's cache; the log says at level INFO that the hub is asked.

    Args:
        repository: `owner/name`.
        revision: a branch, a tag or a commit; by default the newest of the main branch.

    Raises:
        InvalidFile: the repository, the revision or the file is not there, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    _log.info("no file %s is here; asking %s for it", repository, api.endpoint)
    with _in_words(f"there is no file {repository} here", repository, revision, api.endpoint):
        return Path(api.hf_hub_download(repository, FILE, revision=revision, local_files_only=not _reached(api, repository, revision)))


def _reached(api: HfApi, repository: str, revision: str | None) -> bool:
    """Whether the hub answers for the file, which huggingface_hub would ask for again and again, or only the cache may have it."""
    from huggingface_hub import errors, hf_hub_url

    try:
        api.get_hf_file_metadata(url=hf_hub_url(repository, FILE, revision=revision, endpoint=api.endpoint))
    except errors.HfHubHTTPError:
        raise
    except Exception as error:
        _log.info("%s cannot be reached (%s); looking in the cache", api.endpoint, type(error).__name__)
        return False
    return True


def upload(repository: str, files: Mapping[str, bytes], *, private: bool = False, revision: str | None = None) -> str:
    """Writes files to a repository in one commit; it is made if it is not there.

    Args:
        repository: `owner/name`.
        files: by their paths in the repository.
        private: whether a repository that is made can be read by its owner alone.
        revision: a branch; by default the main one.

    Returns:
        The address of the repository.

    Raises:
        InvalidFile: the hub cannot be reached, or does not let you write there.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    with _in_words("nothing was pushed", repository, revision, api.endpoint):
        made = api.create_repo(repository, private=private or None, exist_ok=True)
        added = [CommitOperationAdd(path, content) for path, content in files.items()]
        api.create_commit(repository, added, commit_message="Push by neuroscope", revision=revision)
        return str(made)


@contextlib.contextmanager
def _in_words(outcome: str, repository: str, revision: str | None, endpoint: str) -> Iterator[None]:
    """Whatever the network, the hub and its client raise, as the one clear error."""
    try:
        yield
    except Exception as error:
        raise InvalidFile(f"{outcome}, and {_said(error, repository, revision, endpoint)}") from error


def _said(error: Exception, repository: str, revision: str | None, endpoint: str) -> str:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return f"{endpoint} does not let you at {repository}; ask its owner for access, and log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return f"{endpoint} shows you no repository {repository}; check the name, or log in with `hf auth login` if it is private or yours"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no revision {revision!r}; give a branch, a tag or a commit that it has"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{repository} has no {FILE}, so it holds nothing that neuroscope pushed; check the name"
    if status is not None:
        return f"{endpoint} refuses {repository}: {' '.join(str(error).split())}; try again later"
    return f"{endpoint} cannot be reached for {repository}; check the network, or give an existing file"
