"""What is examined side by side: nearly all its time is compilation.

Kernels for GPU are traced and lowered in Python, by one thread of a process at a time: there the
workers are processes, which a GPU can be shared by. Elsewhere they are threads.
"""

import concurrent.futures
import functools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import jax

from benchmarks.machine import machine

MOST_PROCESSES = 8
"""Each takes some of the GPU's memory, and seconds to begin."""
ENDED = "its process ended"


def are_processes() -> bool:
    """Returns whether workers are processes."""
    return jax.default_backend() == "gpu"


def side_by_side(
    function: Callable[..., Any],
    items: Sequence[tuple[Any, ...]],
    until: float,
    ended: Callable[..., Any],
) -> Iterator[Any]:
    """Yields ``function(*item)`` for each, in order; None for those that would begin too late.

    Where a process ends, which one did it is not known: what it leaves undone is done again, each
    in a process of its own.

    Args:
      function: of a module; what it is given and returns, one process can send another.
      items: what it is given.
      until: when none begins any more, by ``time.monotonic``.
      ended: what is yielded in the place of ``function`` for an item that ends its process.
    """
    cores = machine()["cores"]
    if not are_processes():
        with concurrent.futures.ThreadPoolExecutor(cores) as pool:
            yield from pool.map(functools.partial(_in_time, function, until), items)
        return
    done = 0
    with _processes(max(1, min(cores // 2, MOST_PROCESSES))) as pool:
        for future in [pool.submit(_in_time, function, until, item) for item in items]:
            try:
                found = future.result()
            except BrokenProcessPool:
                break
            yield found
            done += 1
    for item in items[done:]:
        with _processes(1) as pool:
            try:
                found = pool.submit(_in_time, function, until, item).result()
            except BrokenProcessPool:
                found = ended(*item)
        yield found


def _in_time(function: Callable[..., Any], until: float, item: tuple[Any, ...]) -> Any:
    return None if time.monotonic() >= until else function(*item)


def _processes(count: int) -> concurrent.futures.ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(count, context, _share_the_gpu)


def _share_the_gpu() -> None:
    """In a process that begins: of the GPU's memory it is to take as much as it uses."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
