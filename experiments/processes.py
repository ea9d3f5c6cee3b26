"""The processes that run together, by JAX's own distributed runtime."""

import dataclasses

import jax

from experiments.checks import check

PATIENCE = 20
"""Seconds without a sign of life after which a process counts as lost."""


@dataclasses.dataclass(frozen=True)
class ProcessesConfig:
    """The processes that run together, by JAX's own runtime; one alone unless told otherwise."""

    detect: bool = False
    """Whether TPU, Slurm or Open MPI tell how many there are and which this is."""
    coordinator: str | None = None
    """HOST:PORT at which process 0 listens, where nothing is detected."""
    count: int = 1
    """How many there are."""
    index: int = 0
    """Which this is."""

    def __post_init__(self):
        check(self, "count", lambda x: x >= 1, "1 or more")
        check(self, "index", lambda x: 0 <= x < self.count, f"in [0, {self.count})")
        if (self.coordinator is None) != (self.count == 1):
            raise ValueError(
                f"processes.coordinator is {self.coordinator!r} and processes.count is "
                f"{self.count}; expected both for several processes, neither for one"
            )
        if self.detect and self.coordinator is not None:
            raise ValueError("processes.detect is set; expected no processes.coordinator then")

    @property
    def are_several(self) -> bool:
        """Whether JAX's distributed runtime is asked for."""
        return self.detect or self.coordinator is not None


def join(processes: ProcessesConfig) -> None:
    """Joins the other processes, if there are any, before the first use of a device.

    Raises:
      RuntimeError: if the others do not come.
      ValueError: if nothing is detected that tells of them.
    """
    if not processes.are_several:
        return
    known = {
        "coordinator_address": processes.coordinator,
        "num_processes": processes.count,
        "process_id": processes.index,
    }
    if not processes.detect:
        return jax.distributed.initialize(**known, heartbeat_timeout_seconds=PATIENCE)
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=PATIENCE)
    except ValueError as error:
        raise ValueError(
            "processes.detect found nothing; expected the environment of a TPU slice, of a Slurm "
            f"job or of an Open MPI one (JAX says: {error})"
        ) from None
