"""A call spread over the devices of a mesh axis: a ring of shares of the sequence, or of heads.

**Ring.** Device d of n holds the d-th of n equal blocks of the sequence, or, placed in a zig-zag,
the d-th and the d-th from the end of 2 n, so that causal work is the same on all of them at every
step. Queries stay. Keys, and what is summed for them, go from device to device, n steps or as many
as the mask's reach asks for, and the sums then go home; what a device computes from the keys at
hand it computes while the next are on their way. No device ever holds more than a few n-ths of
anything.

**Heads.** Each device has the whole sequence, and the d-th n-th of the heads.

Ring attention: Liu et al., arXiv 2310.01889; balanced by placement: Brandon et al., arXiv
2311.09431, and the zig-zag of Llama 3, arXiv 2407.21783, section 3.3.2.

Letters: n devices.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from attn.masks import Dense, Mask
from attn.tiles import Grid, Share, TileSizes, ceil_div, grid_of


class Ring(NamedTuple):
    """How a sequence is spread over an axis of a mesh; to be used inside ``jax.shard_map``."""

    axis: str
    size: int
    """n, of devices along the axis."""
    is_zigzag: bool = False
    is_gathered: bool = False
    """Whether each device has all keys at hand, those of device 0 first, and none travel."""
    hops: int | None = None
    """Of how many devices, itself the first, each sees the keys; None is of all."""

    @property
    def blocks(self) -> int:
        """How many the sequence is made of."""
        return 2 * self.size if self.is_zigzag else self.size

    def blocks_of(self, device: Any) -> list[Any]:
        """Returns which blocks a device holds, in order."""
        return [device, self.blocks - 1 - device] if self.is_zigzag else [device]

    def grid_of(self, num_queries: int, num_keys: int, most: TileSizes) -> Grid:
        """Returns the grid of the whole sequence, from the queries and keys that are at hand."""
        lengths = num_queries * self.size, num_keys * (1 if self.is_gathered else self.size)
        block = grid_of(lengths[0] // self.blocks, lengths[1] // self.blocks, most)
        return Grid(*lengths, block.query_side, block.key_side, self.blocks)

    def shares(self, grid: Grid, device: Any) -> tuple[Share, Share]:
        """Returns the tiles of queries of this device, and of keys of the given one (or of all)."""
        rows, columns = grid.per_block
        devices = range(self.size) if self.is_gathered else [device]
        return (
            _tiles(self.blocks_of(lax.axis_index(self.axis)), rows),
            _tiles([block for n in devices for block in self.blocks_of(n)], columns),
        )

    def within(
        self, reach: tuple[int | None, int | None], num_queries: int, num_keys: int
    ) -> "Ring":
        """Returns the ring on which keys go no farther than a mask's ``reach`` asks for.

        Where queries see keys of their own index and before; ``num_queries`` and ``num_keys`` are
        those of a share.
        """
        behind, ahead = reach
        is_past = behind is not None and ahead is not None and ahead <= 0
        if not is_past or self.is_zigzag or self.is_gathered or num_queries != num_keys:
            return self
        return self._replace(hops=min(self.size, 1 + max(0, ceil_div(behind, num_keys))))

    def to_zigzag(self, x: Array, axis: int) -> Array:
        """Returns this device's share in a zig-zag, of an array spread in order."""
        first, second = self._sent(jnp.split(x, 2, axis))
        return jnp.concatenate([first, second], axis)

    def from_zigzag(self, x: Array, axis: int) -> Array:
        """Returns this device's share in order, of an array spread in a zig-zag."""
        even, odd = self._sent(jnp.split(x, 2, axis), is_back=True)
        return jnp.concatenate([even, odd], axis)

    def _sent(self, halves: Sequence[Array], *, is_back: bool = False) -> tuple[Array, Array]:
        """Returns both blocks of this device, sent by those that hold them in the other placement.

        In order it holds blocks 2 d and 2 d + 1, in a zig-zag d and 2 n - 1 - d: either way one
        that is even and one that is odd, and each half makes one permutation of devices.
        """
        n, is_even = self.size, lax.axis_index(self.axis) % 2 == 0

        def swapped(pair):
            # Of a zig-zag, the even block is the first on even devices.
            return [jnp.where(is_even, *two) for two in (pair, pair[::-1])]

        hops = [
            [(d, block if block < n else 2 * n - 1 - block) for d, block in enumerate(blocks)]
            for blocks in (range(0, 2 * n, 2), range(1, 2 * n, 2))
        ]
        if is_back:
            hops = [[(there, here) for here, there in pairs] for pairs in hops]
            halves = swapped(halves)
        sent = [lax.ppermute(x, self.axis, pairs) for x, pairs in zip(halves, hops, strict=True)]
        return tuple(sent if is_back else swapped(sent))

    def around(self, visit: Callable, keys: Any, carry: Any, sums: Any) -> tuple[Any, Any]:
        """Returns what is carried, and what is summed for keys, after the keys that are seen.

            carry, summands = visit(device, keys, carry)      sums = sums + summands

        ``keys`` and ``sums``, pytrees, travel: after each visit they are those of the next device.
        Of its sends one is of no use, of keys the last and of sums the first: the price of a loop
        with one body.
        """
        here, n = lax.axis_index(self.axis), self.size
        hops = n if self.hops is None else self.hops

        def send(tree, distance=1):
            pairs = [(k, (k + distance) % n) for k in range(n)]
            return jax.tree.map(lambda x: lax.ppermute(x, self.axis, pairs), tree)

        def step(k, state):
            keys, carry, sums = state
            # Both are on their way while this device visits.
            sent, arriving = send((keys, sums))
            carry, summands = visit((here - k) % n, keys, carry)
            return sent, carry, jax.tree.map(jnp.add, arriving, summands)

        _, carry, sums = lax.fori_loop(0, hops, step, (keys, carry, sums))
        return carry, send(sums, 1 - hops)


class Heads(NamedTuple):
    """How heads are spread over an axis of a mesh; to be used inside ``jax.shard_map``."""

    axis: str
    size: int

    def first(self, num_heads: int) -> Any:
        """Returns the first of the heads of this device, which has so many."""
        return lax.axis_index(self.axis) * num_heads

    def of_array(self, x: Array, num_heads: int) -> Array:
        """Returns the heads of this device, of ``[..., N, T, S]`` with all or with 1."""
        if x.ndim < 3 or x.shape[-3] != num_heads * self.size or self.size == 1:
            return x
        return lax.dynamic_slice_in_dim(x, self.first(num_heads), num_heads, axis=-3)

    def of_mask(self, mask: Mask | None, num_heads: int) -> Mask | None:
        """Returns the mask with the heads of this device in its arrays that have all."""

        def is_dense(x):
            return isinstance(x, Dense)

        def of_leaf(x):
            return Dense(self.of_array(jnp.asarray(x.array), num_heads)) if is_dense(x) else x

        return jax.tree.map(of_leaf, mask, is_leaf=is_dense)


def shares_of(grid: Grid, ring: Ring | None, device: Any = None) -> tuple[Share, Share]:
    """Returns the tiles of queries and of keys at hand; of a ring, ``device`` is whose keys."""
    if ring is not None:
        return ring.shares(grid, 0 if device is None else device)
    rows, columns = grid.counts
    return Share(rows), Share(columns)


def _tiles(blocks: list[Any], count: int) -> Share:
    """Returns the tiles of some blocks, of ``count`` tiles each."""
    tiles: Int[Array, "tiles"] = jnp.concatenate([n * count + jnp.arange(count) for n in blocks])
    return Share(len(blocks) * count, tiles)
