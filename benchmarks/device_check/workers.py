"""What is examined side by side: nearly all its time is compilation.

Kernels for GPU are traced and lowered in Python, by one thread of a process at a time: there the
workers are processes, which a GPU can be shared by, and of which one that ends, or does not, loses
its own item. Elsewhere they are threads.
"""

import concurrent.futures
import functools
import multiprocessing
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from attn.testing.subject import summary
from benchmarks.machine import machine

MOST_PROCESSES = 12
"""Each takes half a gigabyte of the GPU's memory, and seconds to begin."""
PATIENCE = 60.0
"""Seconds that a process is given for what it has begun, after all time is over."""
LONGEST = 1e6
"""Seconds that may be waited for."""
ENDED = "its process ended"
NOT_ENDED = f"it had not ended {PATIENCE:.0f} s after all time was over"


def are_processes() -> bool:
    """Returns whether workers are processes."""
    return jax.default_backend() == "gpu"


def side_by_side(
    function: Callable[..., Any],
    items: Sequence[tuple[Any, ...]],
    until: float,
    lost: Callable[..., Any],
) -> Iterator[Any]:
    """Yields ``function(*item)`` for each, in order; None for those that would begin too late.

    Args:
      function: of a module; what it is given and returns, one process can send another.
      items: what it is given.
      until: when none begins any more, by ``time.monotonic``.
      lost: what is yielded in the place of ``function`` for an item whose process raised, ended,
        or did not: it is given the item and which of these it was.
    """
    cores = machine()["cores"]
    count = min(len(items), MOST_PROCESSES, max(1, cores * 3 // 4)) if are_processes() else 0
    workers: queue.Queue[_Process] = queue.Queue()
    for _ in range(count):
        workers.put(_Process())

    def examined(item):
        if time.monotonic() >= until:
            return None
        if not count:
            return function(*item)
        worker = workers.get()
        try:
            worker = worker.alive()
            found, raised = worker.done(functools.partial(function, *item), until + PATIENCE)
            return found if raised is None else lost(*item, raised)
        except (EOFError, OSError) as error:
            worker.kill()
            worker = _Process()
            return lost(*item, NOT_ENDED if isinstance(error, TimeoutError) else ENDED)
        finally:
            workers.put(worker)

    try:
        with concurrent.futures.ThreadPoolExecutor(count or cores) as threads:
            yield from threads.map(examined, items)
    finally:
        for _ in range(count):
            workers.get().kill()


class _Process:
    """A process that computes what it is sent, one after another."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()  # So that reading ends where the process does.

    def done(self, task: Callable[[], Any], until: float) -> tuple[Any, str | None]:
        """Returns what a task does; raises EOFError if its process ends, TimeoutError if late."""
        self._pipe.send(task)
        if not self._pipe.poll(min(max(0.0, until - time.monotonic()), LONGEST)):
            raise TimeoutError
        return self._pipe.recv()

    def alive(self) -> "_Process":
        """Returns itself, or another in its place if it has ended while it waited."""
        if self._process.is_alive():
            return self
        self.kill()
        return _Process()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Any) -> None:
    while True:
        task = pipe.recv()
        try:
            answer = task(), None
        except Exception as error:
            answer = None, summary(error)
        pipe.send(answer)
