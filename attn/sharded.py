"""Attention over a sequence that is spread over the devices of a mesh axis.

Each of n devices has a share of the queries, keys and values, and returns its share of the output;
what it returns is what one device would of the whole sequence, to rounding, and so are derivatives
of every order. Masks, scores, dropout and lengths are of the whole sequence: their indices are
those of its tokens, wherever these are.

    method        what moves in a pass               memory a device   it needs
    ring          keys and values, n times a share   a share           n divides T and S
    gather        keys and values, once              all keys          the same
    all_to_all    everything, once, and back         a share           n divides N; K a multiple
                                                                       of n, or n one of K

``ring`` sends the next keys while it computes with these (Liu et al., arXiv 2310.01889), as far as
XLA schedules it so: it does around loops over tiles, and around kernels on some TPUs.
``gather`` suits few key heads. ``all_to_all`` spreads the heads for as long as the call takes
(Jacobs et al., arXiv 2309.14509): a mask's or score's function then sees N / n of them, and
``at.head`` says which. All leave out the tiles that a mask finds empty, so under a
causal mask the shares of ``ring`` and ``gather`` are of unequal work, the last device's twice the
mean; in a zig-zag they are of equal work, at every step. Arrays can be placed so from the start
(``place``), or exchanged for as long as the call takes, half a share with another device each way.

Letters: ``*B`` leading axes, T queries and S keys of the whole sequence, n devices, N query heads,
K key heads, H head width, V value width.
"""

import contextlib
from typing import Any, Literal, Unpack, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from attn import arguments, devices, fields, softmax_state
from attn.blockwise import blockwise_attention
from attn.dot_product import Options, chosen
from attn.masks import Mask
from attn.spread import Heads, Ring

Method = Literal["ring", "gather", "all_to_all"]
Placement = Literal["contiguous", "zigzag", "exchanged"]
Implementation = Literal["blockwise", "fused"]


def dot_product_attention(
    query: Float[Array, "*B T/n N H"],
    key: Float[Array, "*B S/n K H"],
    value: Float[Array, "*B S/n K V"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | Mask | None = None,
    *,
    axis_name: str,
    mesh: Mesh | None = None,
    method: Method = "ring",
    placement: Placement = "contiguous",
    sinks: Float[Array, "..."] | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: Array | None = None,
    implementation: Implementation | None = None,
    return_residual: bool = False,
    **options: Unpack[Options],
) -> Float[Array, "*B T/n N V"] | tuple[Float[Array, "*B T/n N V"], Float[Array, "*B T/n N"]]:
    """Returns this device's share of ``attn.dot_product_attention`` over the whole sequence.

    To be called inside ``jax.shard_map``, with the shares of this device; or, with a ``mesh``, on
    whole arrays, also under ``jit``: then the sequence is spread over that axis, and other axes
    stay as they are cut.

    Cost: the time of the whole, over n devices; memory as the module docstring says, in every
    derivative too.

    Args:
      query: this device's queries.
      key: this device's keys.
      value: this device's values.
      bias: as in ``attn.dot_product_attention``; this device's rows of all columns, broadcastable
        to ``[*B, N, T/n, S]``.
      mask: as there, of the whole sequence. Arrays in it are whole on every device, booleans of
        T x S too; a rule (``attn.masks``) takes none, a bias with -inf in it the rows of a device.
      axis_name: the mesh axis over which the sequence is spread.
      mesh: of the axis, if the arrays are whole; None inside ``jax.shard_map``.
      method: see the module docstring.
      placement: ``"contiguous"``: device d has the d-th n-th of the sequence; ``"zigzag"``: as
        ``place`` has it; ``"exchanged"``: the first, and the second for as long as the call takes.
        ``all_to_all`` has nothing to exchange.
      sinks: as there.
      dropout_rate: as there.
      dropout_rng: as there; the same weights are dropped as on one device.
      implementation: of what a device does with the keys at hand: ``"fused"``, or an error that
        says why not, or ``"blockwise"``. None is fused where the platform has kernels that can
        take the call and XLA has nothing left to divide, that is, where ``jax.shard_map`` is over
        all axes of the mesh or all others are of one device; else blockwise.
      return_residual: as there.
      **options: as there; lengths, windows and scores are of the whole sequence.

    Returns:
      The output ``[*B, T/n, N, V]``, in the dtype of the query; with ``return_residual`` also the
      log-sum-exp ``[*B, T/n, N]``, in float32 or float64. Both are differentiable to any order.

    Raises:
      ValueError: for an axis that is not there, a sequence or heads that cannot be spread over it,
        and as ``attn.dot_product_attention`` does.
      TypeError: as there.

    Example:
      >>> import attn, jax
      >>> mesh = jax.make_mesh((1,), ("sequence",))
      >>> x = jax.random.normal(jax.random.key(0), (2, 16, 4, 8))
      >>> spread = {"axis_name": "sequence", "mesh": mesh}
      >>> attn.sharded.dot_product_attention(x, x, x, is_causal=True, **spread).shape
      (2, 16, 4, 8)
    """
    if not isinstance(axis_name, str):
        raise TypeError(f"axis_name is {axis_name!r}; expected the name of one axis")
    arguments.check_choice("method", method, get_args(Method))
    arguments.check_choice("placement", placement, get_args(Placement))
    implementation = chosen(implementation, get_args(Implementation))
    arguments.check_flag("return_residual", return_residual)
    query, key, value = arguments.arrays(query=query, key=key, value=value)
    others = {"sinks": sinks, "dropout_rate": dropout_rate, "dropout_rng": dropout_rng}
    settings = axis_name, method, placement, implementation
    if mesh is None:
        found = _of_device(settings, query, key, value, bias, mask, options | others)
    else:
        found = _over_mesh(mesh, settings, query, key, value, bias, mask, options | others)
    return found if return_residual else found[0]


def place(x: Array, num_devices: int, axis: int = -3) -> Array:
    """Returns the array with an axis in zig-zag: device d gets blocks d and 2 n - 1 - d of 2 n.

    >>> import numpy as np
    >>> place(np.arange(8), num_devices=2, axis=0).tolist()
    [0, 1, 6, 7, 2, 3, 4, 5]

    Args:
      x: whole.
      num_devices: n.
      axis: of the sequence; its length must be a multiple of 2 n.

    Raises:
      ValueError: if it is not, or n is less than 1.
      TypeError: if n is no int.
    """
    return jnp.take(x, jnp.asarray(_order(x.shape[axis], num_devices)), axis=axis)


def restore(x: Array, num_devices: int, axis: int = -3) -> Array:
    """Returns what ``place`` was given; the same arguments, and errors."""
    order = np.argsort(_order(x.shape[axis], num_devices))
    return jnp.take(x, jnp.asarray(order), axis=axis)


def _order(length: int, num_devices: int) -> np.ndarray:
    """Returns which token stands where in a zig-zag."""
    num_devices = fields.count("num_devices", num_devices, 1)
    if length % (2 * num_devices):
        raise ValueError(
            f"x has length {length}; expected a multiple of {2 * num_devices}, two blocks for each "
            f"of {num_devices} devices"
        )
    ring = Ring("", num_devices, is_zigzag=True)
    blocks = np.arange(length).reshape(ring.blocks, -1)
    return np.concatenate([blocks[ring.blocks_of(n)] for n in range(num_devices)]).ravel()


def _over_mesh(
    mesh: Mesh | AbstractMesh,
    settings: tuple[str, Method, Placement, Implementation | None],
    query: Array,
    key: Array,
    value: Array,
    bias: Any,
    mask: Any,
    options: dict[str, Any],
) -> tuple[Array, Array]:
    """Returns output and log-sum-exp of whole arrays."""
    axis, method, placement, _ = settings
    if not isinstance(mesh, (Mesh, AbstractMesh)):
        raise TypeError(f"mesh is a {type(mesh).__name__}; expected a jax.sharding.Mesh")
    if axis not in mesh.axis_names:
        known = ", ".join(map(repr, mesh.axis_names)) or "it has none; is one set?"
        raise ValueError(f"axis_name is {axis!r}; expected an axis of the mesh: {known}")
    here = jax.sharding.get_abstract_mesh()
    if axis in getattr(here, "manual_axes", ()):
        raise ValueError(
            f"mesh is given inside jax.shard_map over axis {axis!r}; expected None, for the arrays "
            "are shares there"
        )
    if getattr(here, "manual_axes", ()) and dict(here.shape) == dict(mesh.shape):
        mesh = here  # The one that says which axes are the caller's.
    size = mesh.shape[axis]
    blocks, words = size, f"{size}, the size of axis {axis!r}"
    if _is_zigzag(method, placement):
        blocks, words = 2 * size, f"{2 * size}, two blocks for each device of axis {axis!r}"
    for name, x in (("query", query), ("key", key)):
        if x.shape[-3] % blocks:
            raise ValueError(
                f"{name} has shape {x.shape}; expected a sequence whose length is a multiple of "
                f"{words}"
            )
    if method == "all_to_all":
        _check_heads(axis, size, query, key)
    # What else is wrong is found in the arrays as they were given, before any is moved; but of a
    # function that asks on which device it is.
    with contextlib.suppress(NameError):
        jax.eval_shape(lambda: bool(_resolved(query, query, key, bias, mask, options)))

    def rows(x: Array, at: int) -> PartitionSpec:
        return PartitionSpec(*(axis if n == x.ndim + at else None for n in range(x.ndim)))

    of_bias = PartitionSpec()
    if bias is not None:
        bias = arguments.resolve(query, key, bias, None).bias
        of_bias = rows(bias, -2) if bias.shape[-2] != 1 else PartitionSpec()
    arrays, rebuild = devices.arrays_of((mask, options))

    def of_device(query, key, value, bias, arrays):
        return _of_device(settings, query, key, value, bias, *rebuild(arrays))

    in_specs = rows(query, -3), rows(key, -3), rows(value, -3), of_bias, PartitionSpec()
    out_specs = rows(query, -3), PartitionSpec(*rows(query, -3)[:-1])
    if not getattr(mesh, "explicit_axes", ()):
        # Kernels run where XLA has nothing to divide: so axes that divide nothing are ours too, if
        # no others are left.
        others = {*mesh.axis_names} - {axis, *getattr(mesh, "manual_axes", ())}
        is_all = all(mesh.shape[name] == 1 for name in others)
        names = {axis, *others} if is_all else {axis}
        spread = jax.shard_map(
            of_device, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=names
        )
        return spread(query, key, value, bias, arrays)
    # Types say how arrays are cut: this one axis is, and in between XLA sees to the others.
    query, key, value = (
        devices.reshard(x, mesh, spec)
        for x, spec in zip((query, key, value), in_specs, strict=False)
    )
    bias = None if bias is None else devices.reshard(bias, mesh, of_bias)
    spread = jax.shard_map(of_device, in_specs=in_specs, out_specs=out_specs, axis_names={axis})
    every = query, key, value, bias, arrays
    return devices.automatic(lambda *every: spread(*every), query, query.ndim - 1, *every)


def _of_device(
    settings: tuple[str, Method, Placement, Implementation | None],
    query: Array,
    key: Array,
    value: Array,
    bias: Any,
    mask: Any,
    options: dict[str, Any],
) -> tuple[Array, Array]:
    """Returns this device's share of output and log-sum-exp."""
    axis, method, placement, named = settings
    size = _size_of(axis)
    is_zigzag = _is_zigzag(method, placement)
    attend = _over_heads if method == "all_to_all" else _over_keys
    if placement == "exchanged" and is_zigzag:
        attend = _exchanged
    whole = _whole(query, size), _whole(key, size)
    resolved, logits = _resolved(query, *whole, bias, mask, options)
    if is_zigzag:
        for name, x in (("query", query), ("key", key)):
            if x.shape[-3] % 2:
                raise ValueError(
                    f"{name} has shape {x.shape}; expected an even share of the sequence, for a "
                    "zig-zag is of two blocks a device"
                )
    ring = Ring(axis, size, is_zigzag, is_gathered=method == "gather")
    arrays = query, key, value, resolved
    arrays = devices.vary(arrays, tuple(sorted({axis, *devices.varying(arrays)})))
    output, lse = attend(ring, named, *arrays)
    if logits is not None:
        output, lse = softmax_state.with_sink(output, lse, logits)
    return output.astype(query.dtype), lse


def _is_zigzag(method: Method, placement: Placement) -> bool:
    """Returns whether each device has two blocks, before the call or in it."""
    return placement == "zigzag" or (placement == "exchanged" and method != "all_to_all")


def _resolved(
    share: Array, query: Any, key: Any, bias: Any, mask: Any, options: dict[str, Any]
) -> tuple[arguments.Resolved, Array | None]:
    """Returns the options as implementations take them, and the logits of sinks.

    Args:
      share: the queries that bias and sinks are of.
      query: all.
      key: all.
      bias: of the share, or None.
      mask: of all.
      options: of all, sinks and dropout among them.
    """
    options = dict(options)
    logits, rate, rng = (options.pop(k) for k in ("sinks", "dropout_rate", "dropout_rng"))
    resolved = arguments.resolve(query, key, None, mask, **options)
    resolved = arguments.dropped(resolved, rate, rng)
    bias = arguments.resolve(share, key, bias, None).bias
    logits = None if logits is None else arguments.sinks_of(logits, share)
    return resolved._replace(bias=bias), logits


def _whole(share: Array, size: int) -> Any:
    """Returns shape and dtype of the array of which this is a share."""
    *batch, length, heads, width = share.shape
    return jax.ShapeDtypeStruct((*batch, length * size, heads, width), share.dtype)


def _size_of(axis: Any) -> int:
    try:
        return lax.axis_size(axis)
    except NameError:
        raise ValueError(
            f"axis_name is {axis!r}; expected an axis of the jax.shard_map around this call, or a "
            "mesh beside it"
        ) from None


def _over_keys(
    ring: Ring, named: str | None, query: Array, key: Array, value: Array, resolved
) -> tuple[Any, Any]:
    """Attends with the queries of this device to keys that travel, or to all, gathered."""
    if ring.is_gathered:
        gather = lambda x: lax.all_gather(x, ring.axis, axis=x.ndim - 3, tiled=True)  # noqa: E731
        key, value = gather(key), gather(value)
    return blockwise_attention(query, key, value, *resolved, spread=ring, named=named)


def _exchanged(
    ring: Ring, named: str | None, query: Array, key: Array, value: Array, resolved
) -> tuple[Any, Any]:
    """Attends in a zig-zag with contiguous shares."""
    bias = resolved.bias
    if bias is not None and bias.shape[-2] != 1:
        resolved = resolved._replace(bias=ring.to_zigzag(bias, -2))
    query, key, value = (ring.to_zigzag(x, -3) for x in (query, key, value))
    output, lse = _over_keys(ring, named, query, key, value, resolved)
    return ring.from_zigzag(output, -3), ring.from_zigzag(lse, -2)


def _check_heads(axis: str, size: int, query: Array, key: Array) -> None:
    """Raises ValueError unless the heads can be spread over so many devices."""
    num_heads, num_key_heads = query.shape[-2], key.shape[-2]
    if num_heads % size:
        raise ValueError(
            f"query has N = {num_heads} heads; expected a multiple of {size}, the size of axis "
            f"{axis!r}, for all_to_all"
        )
    if num_key_heads % size and size % num_key_heads:
        raise ValueError(
            f"key has K = {num_key_heads} heads; expected a multiple or a divisor of {size}, the "
            f"size of axis {axis!r}, for all_to_all"
        )


def _over_heads(
    ring: Ring, named: str | None, query: Array, key: Array, value: Array, resolved
) -> tuple[Any, Any]:
    """Attends with some heads to the whole sequence, between two exchanges of all with all."""
    size, num_heads, num_key_heads = ring.size, query.shape[-2], key.shape[-2]
    _check_heads(ring.axis, size, query, key)
    if num_key_heads < size:
        key, value = (jnp.repeat(x, size // num_key_heads, axis=-2) for x in (key, value))

    def to_heads(x, heads=-2, rows=-3):
        x = lax.all_to_all(x, ring.axis, x.ndim + heads, x.ndim + rows, tiled=True)
        return restore(x, size, rows) if ring.is_zigzag else x

    def to_rows(x, heads, rows):
        x = place(x, size, rows) if ring.is_zigzag else x
        return lax.all_to_all(x, ring.axis, x.ndim + rows, x.ndim + heads, tiled=True)

    share, bias = Heads(ring.axis, size), resolved.bias
    # A share of one query has rows of its own, if they are not those of all.
    if bias is not None and bias.shape[-2] == 1 != query.shape[-3]:
        bias = share.of_array(bias, num_heads // size)
    elif bias is not None and bias.shape[-3] == 1:
        bias = lax.all_gather(bias, ring.axis, axis=bias.ndim - 2, tiled=True)
        bias = restore(bias, size, -2) if ring.is_zigzag else bias
    elif bias is not None:
        bias = to_heads(bias, heads=-3, rows=-2)
    mask = share.of_mask(resolved.mask, num_heads // size)
    resolved = resolved._replace(bias=bias, mask=mask)
    query, key, value = map(to_heads, (query, key, value))
    try:
        output, lse = blockwise_attention(query, key, value, *resolved, spread=share, named=named)
    except (TypeError, ValueError) as error:
        error.add_note(
            f"for all_to_all, a function of scores or masks sees {num_heads // size} of "
            f"N = {num_heads} heads; at.head says which"
        )
        raise
    return to_rows(output, heads=-2, rows=-3), to_rows(lse, heads=-1, rows=-2)
