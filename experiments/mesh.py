"""Devices as a mesh: over it the runs of a sweep and, inside a run, rows, tokens and heads.

    run        runs; none knows of another
    sequence   tokens of a row, which attention goes round as a ring (``attn.sharded``)
    data       rows of a batch
    model      heads of attention, hidden units of an MLP, tokens of the vocabulary

Programs handle the axis of runs themselves (``experiments.runs``). Along the others a step says
where its rows and its parameters are, and XLA divides the work and sends what has to be sent. The
mesh is no part of what is computed: a run goes on, to rounding the same, on any other.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.checks import check

AXES = ("run", "sequence", "data", "model")
"""In the order in which ``jax.shard_map`` is over them, one inside the other: XLA of jax 0.11 ends
the process at any other."""
LINKS = ("run", "data", "sequence", "model")
"""The same, those first along which least is sent: along the last are the nearest devices."""

OF_PARAMETERS = {
    ("query", "kernel"): (None, "model", None),
    ("key", "kernel"): (None, "model", None),
    ("value", "kernel"): (None, "model", None),
    ("out", "kernel"): ("model", None, None),
    ("mlp_in", "kernel"): (None, "model"),
    ("mlp_in", "bias"): ("model",),
    ("mlp_out", "kernel"): ("model", None),
    ("embed", "embedding"): ("model", None),
}
"""How the parameters of a module, layers of one name alike, are cut; those of others are not."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Over how many devices one run is spread; further devices train further runs."""

    data: int = 1
    """Parts that the rows of a batch are cut into."""
    sequence: int = 1
    """Parts that the tokens of a row are cut into."""
    model: int = 1
    """Parts that heads, hidden units and the vocabulary are cut into."""

    def __post_init__(self):
        check(self, "data sequence model", lambda x: x >= 1, "1 or more")

    @property
    def size(self) -> int:
        """Devices of one run."""
        return self.data * self.sequence * self.model


def build_mesh(shape: MeshConfig, most_groups: int, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh with the axes ``AXES``: groups of ``shape.size`` devices, one group a run.

    There are as many groups as the devices make, at most ``most_groups``; among several processes
    as many as they make, for each takes part.

    Args:
      shape: of the devices of one run.
      most_groups: runs that there are at most.
      devices: all of all processes, unless others are named to compile for.

    Raises:
      ValueError: if there are fewer devices than one run has, a process would have none, or XLA
        is known to end the process.
    """
    every = list(jax.devices() if devices is None else devices)
    groups = len(every) // shape.size
    if groups == 0:
        raise ValueError(
            f"mesh is data {shape.data} x sequence {shape.sequence} x model {shape.model}; "
            f"expected at most the {len(every)} devices that there are"
        )
    if devices is not None or jax.process_count() == 1:
        groups = min(groups, most_groups)
    cut = [name for name in AXES if getattr(shape, name, 1) > 1]
    if groups > 1 and len(cut) > 1 and jax.__version_info__ >= (0, 11):
        raise ValueError(
            f"mesh cuts a run along {' and '.join(cut)}, and {groups} runs at a time have devices, "
            f"which XLA of jax {jax.__version__} cannot compile; expected a cut along one of them, "
            f"{shape.size} devices for one run, or jax 0.10"
        )
    used = every[: groups * shape.size]
    idle = {x.process_index for x in every} - {x.process_index for x in used}
    if devices is None and idle:
        raise ValueError(
            f"mesh is data {shape.data} x sequence {shape.sequence} x model {shape.model}, which "
            f"leaves no device of the {len(every)} for process {min(idle)}; expected a product "
            "that divides the number of devices"
        )
    sizes = (groups, *(getattr(shape, name) for name in LINKS[1:]))
    types = (AxisType.Auto,) * len(AXES)
    placed = jax.make_mesh(sizes, LINKS, types, devices=used).devices
    return Mesh(placed.transpose([LINKS.index(name) for name in AXES]), AXES, types)


def split_rows(batch: Any) -> Any:
    """Returns a batch cut along its rows and, what has an entry a token, along these."""
    length = batch.inputs.shape[1]

    def of_leaf(x: Any) -> Any:
        return _cut(x, ("data", "sequence" if x.shape[1:2] == (length,) else None))

    return jax.tree.map(of_leaf, batch)


def of_states(mesh: Mesh, stacked: Any) -> Any:
    """Returns the shardings of states stacked along the axis of runs: as ``OF_PARAMETERS`` says."""

    def of_leaf(path: Any, x: Any) -> NamedSharding:
        axes = _that_divide(mesh, _axes_of(path), x.shape[1:])
        return NamedSharding(mesh, PartitionSpec("run", *axes))

    return jax.tree.map_with_path(of_leaf, stacked)


def left_whole(shape: MeshConfig, params: Any) -> dict[str, tuple[int, ...]]:
    """Returns name and shape of the parameters that ``OF_PARAMETERS`` cuts, and the mesh cannot.

    The axis they are to be cut along is no multiple of ``shape.model``: each device has all of
    them.
    """
    leaves = jax.tree.leaves_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): x.shape
        for path, x in leaves
        for axis, size in zip(_axes_of(path), x.shape, strict=False)
        if axis == "model" and size % shape.model
    }


def sequence_axis() -> str | None:
    """Returns the axis over which rows are spread where this is traced; None if they are not."""
    mesh = jax.sharding.get_abstract_mesh()
    return "sequence" if dict(mesh.shape).get("sequence", 1) > 1 else None


def along_rows(function: Callable[..., Any], x: Any, *shared: Any, past: int = 0) -> Any:
    """Returns ``function(x with the positions before it, *shared)``.

    Where rows are cut, each device does so with its share and is sent the few positions before it.
    Left to itself, XLA gathers whole rows on every device, there or in the gradient.

    Cost: that of ``function`` on a share; ``past`` positions sent, and their gradients sent back.

    Args:
      function: from ``[B, past + L, ...]`` to ``[B, L, ...]``: each position of the ``past`` before
        it and of its own.
      x: whole rows, ``[B, L, ...]``.
      *shared: arrays that are the same for all rows.
      past: positions before the first are zeros.
    """
    mesh = jax.sharding.get_abstract_mesh()
    cut = _that_divide(mesh, ("data", "sequence"), x.shape) if "data" in mesh.axis_names else ()
    axis = cut[1] if len(cut) == 2 else None
    if axis is not None and x.shape[1] < past * mesh.shape[axis]:  # Not all stands next door.
        cut, axis = cut[:1], None

    def of_share(x, *shared):
        if not past:
            return function(x, *shared)
        before = jnp.zeros((x.shape[0], past, *x.shape[2:]), x.dtype)
        if axis is not None:  # The first device is sent nothing, which is zeros.
            pairs = [(n, n + 1) for n in range(mesh.shape[axis] - 1)]
            before = jax.lax.ppermute(x[:, -past:], axis, pairs)
        return function(jnp.concatenate([before, x], axis=1), *shared)

    names = {name for name in cut if name is not None}
    if not names:
        return of_share(x, *shared)
    rows, everywhere = PartitionSpec(*cut), PartitionSpec()
    in_specs = rows, *(everywhere for _ in shared)
    spread = jax.shard_map(of_share, in_specs=in_specs, out_specs=rows, axis_names=names)
    return spread(x, *shared)


def _axes_of(path: Any) -> tuple[str | None, ...]:
    names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
    *_, module, name = ["", "", *names]
    return OF_PARAMETERS.get((module.rstrip("_0123456789"), name), ())


def _cut(x: Any, axes: tuple[str | None, ...]) -> Any:
    """Returns the array cut so, where the program is traced on a mesh with these axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if "data" not in mesh.axis_names:
        return x
    axes = _that_divide(mesh, axes[: x.ndim], x.shape)
    if not axes:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def _that_divide(
    mesh: Any, axes: tuple[str | None, ...], shape: tuple[int, ...]
) -> tuple[str | None, ...]:
    """Returns the axes that cut something, None in the place of those that do not divide it."""

    def cuts(axis: str | None, size: int) -> bool:
        return axis is not None and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0

    found = [axis if cuts(axis, n) else None for axis, n in zip(axes, shape, strict=False)]
    while found and found[-1] is None:
        found.pop()
    return tuple(found)
