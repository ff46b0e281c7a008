"""The connection to a Ray cluster, and what it has room for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from neuroscope.core.errors import InvalidInput, counted, first_line

#: Ray counts resources in parts of ten thousand.
_SMALLEST = 1e-4
#: Addresses that mean whatever cluster there is.
_ANY = (None, "auto")


def library() -> Any:
    """The package ray.

    Raises:
        InvalidInput: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise InvalidInput("ray is not installed; run pip install ray") from error
    return ray


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """A block in which this process is connected to a cluster, with the package ray.

    A connection that is there already is used and stays. Otherwise one is made, by Ray's own rules: to `address`, or to the cluster that
    runs on this machine, or to a new one on this machine, which ends with the block.

    Raises:
        InvalidInput: there is no cluster at that address, or the process is connected to another one.
    """
    ray = library()
    if ray.is_initialized():
        _check_same(ray, address)
        yield ray
        return
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise InvalidInput(
            f"no Ray cluster is reached at address {address!r}: {first_line(error)} Start one with `ray start --head`, or leave "
            "address out to use this machine alone"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_same(ray: Any, address: str | None) -> None:
    here = ray.get_runtime_context().gcs_address
    if address not in (*_ANY, here):
        raise InvalidInput(f"this process is connected to Ray at {here}, not to {address!r}; call ray.shutdown(), or leave address out")


def check_room(ray: Any, need: Mapping[str, float], workers: int | None) -> int:
    """How many workers to start: as many as were asked for, by default as many as the cluster has room for.

    Args:
        ray: the package, connected.
        need: what each worker takes, by Ray's names of resources; all of it on one node.
        workers: how many were asked for.

    Raises:
        InvalidInput: the cluster's nodes can never hold as many, whatever else runs on them.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(_fitting(each, need) for each in nodes)
    if room >= (workers or 1):
        return workers or room
    asked = ", ".join(f"{amount:g} {name}" for name, amount in need.items())
    held = "; ".join(", ".join(f"{node.get(name, 0):g} {name}" for name in need) for node in nodes)
    raise InvalidInput(
        f"the cluster has room for {counted(room, 'worker')} of {asked} each, not for {workers or 1}: its nodes have {held}; "
        "start further nodes, or "
        "give fewer workers, or less for each (threads, gpus_per_worker, resources)"
    )


def _fitting(node: Mapping[str, float], need: Mapping[str, float]) -> int:
    """How many workers one node holds; a fraction of a GPU lies on one GPU."""
    return min(_times(node.get(name, 0), amount, name == "GPU") for name, amount in need.items() if amount)


def _times(held: float, amount: float, is_gpu: bool) -> int:
    """How often an amount of a resource can be given."""
    if is_gpu and amount < 1:
        return int(held) * _times(1, amount, False)
    return int((held + _SMALLEST / 2) // amount)


def dashboard(ray: Any) -> str:
    """The link of the cluster's dashboard; empty where there is none."""
    link = ray.init(ignore_reinit_error=True, logging_level=logging.WARNING).dashboard_url
    return f"http://{link}" if link else ""
