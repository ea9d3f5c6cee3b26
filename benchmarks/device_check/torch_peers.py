"""torch's attention on the same GPU: its own, and FlexAttention compiled."""

from collections.abc import Callable
from typing import Any

import numpy as np

from attn import positions
from benchmarks.device_check.peers import (
    BOTH,
    CAUSAL,
    DISTANCES,
    FORWARD,
    FULL,
    MASK,
    NUM_BUCKETS,
    PERIOD,
    SCORE,
    SINGLE,
    Calls,
    Peer,
    Work,
)


def torch_peers() -> dict[str, Peer]:
    """Returns what torch has; nothing without torch or without a GPU that it finds."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    return {"torch SDPA": sdpa, "torch FlexAttention": flex}


class Queued:
    """What a call has put on the GPU's queue; ``jax.block_until_ready`` waits for it."""

    def block_until_ready(self) -> None:
        """Returns once the queue is empty."""
        import torch

        torch.cuda.synchronize()


def sdpa(work: Work) -> Calls | None:
    """Returns calls of ``scaled_dot_product_attention``."""
    import torch

    if work.kind not in (FULL, CAUSAL, SINGLE):
        return None
    attend = torch.nn.functional.scaled_dot_product_attention
    return calls(lambda *inputs: attend(*inputs, is_causal=work.kind != FULL), work)


def flex(work: Work) -> Calls | None:
    """Returns calls of FlexAttention, where a mask or a score is a function."""
    import torch
    from torch.nn.attention import flex_attention as of_torch

    if work.kind not in (MASK, SCORE, DISTANCES):
        return None
    torch._dynamo.config.recompile_limit = 256  # Each length is a program of its own.
    length, heads = work.length, work.shape[2]
    rates = torch.linspace(0.01, 0.1, heads, device="cuda")

    def is_seen(batch, head, i, j):
        return (i >= j) & ((i - j) % PERIOD != 1)

    def is_before(batch, head, i, j):
        return i >= j

    def change(found, batch, head, i, j):
        return found - rates[head] * (i - j)

    distances = np.arange(length)
    buckets = np.asarray(positions.relative_buckets(-distances, NUM_BUCKETS, bidirectional=False))
    of_distance = torch.from_numpy(work.table()[buckets]).to("cuda")

    def look_up(found, batch, head, i, j):
        return found + of_distance[torch.abs(i - j), head]

    allowed = is_seen if work.kind == MASK else is_before
    mask = of_torch.create_block_mask(allowed, None, None, length, length, device="cuda")
    attend = torch.compile(of_torch.flex_attention, dynamic=False)
    score = {SCORE: change, DISTANCES: look_up}.get(work.kind)
    return calls(lambda *inputs: attend(*inputs, score_mod=score, block_mask=mask), work)


def calls(attend: Callable[..., Any], work: Work) -> Calls:
    """Returns forward, and forward and backward with the output as its own cotangent.

    What the backward pass needs is kept by both, so that a program is compiled once for them.
    """
    import torch

    dtype = getattr(torch, work.dtype)
    inputs = [
        torch.from_numpy(x.swapaxes(1, 2).copy()).to("cuda", dtype).requires_grad_()
        for x in work.arrays()
    ]

    def forward() -> Queued:
        attend(*inputs)
        return Queued()

    def both() -> Queued:
        output = attend(*inputs)
        torch.autograd.grad(output, inputs, output.detach())
        return Queued()

    both().block_until_ready()
    return {FORWARD: forward, BOTH: both}
