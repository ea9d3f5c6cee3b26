"""What is examined side by side: nearly all its time is compilation.

Kernels for GPU are traced and lowered in Python, by one thread of a process at a time: there the
workers are processes, which a GPU can be shared by. Elsewhere they are threads.
"""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import jax

from benchmarks.machine import machine

MOST_PROCESSES = 8
"""Each takes some of the GPU's memory, and seconds to begin."""


class Examine(Protocol):
    """A function of a module, and what it is given and returns, that one process can send another.

    It looks at ``until``, a time of ``time.monotonic``, before it begins.
    """

    def __call__(self, *item: Any, until: float) -> Any: ...


def are_processes() -> bool:
    """Returns whether workers are processes."""
    return jax.default_backend() == "gpu"


def side_by_side(function: Examine, items: Iterable[Sequence[Any]], until: float) -> Iterator[Any]:
    """Yields ``function(*item, until=until)`` for each, in order."""
    cores = machine()["cores"]
    if are_processes():
        pool: concurrent.futures.Executor = concurrent.futures.ProcessPoolExecutor(
            max(1, min(cores // 2, MOST_PROCESSES)),
            multiprocessing.get_context("spawn"),
            _share_the_gpu,
        )
    else:
        pool = concurrent.futures.ThreadPoolExecutor(cores)
    with pool:
        futures = [pool.submit(function, *item, until=until) for item in items]
        for future in futures:
            yield future.result()


def _share_the_gpu() -> None:
    """In a process that begins: of the GPU's memory it is to take as much as it uses."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
