"""Which laws of attention hold for whom: ``attn.testing`` on attn and on what else is installed.

    python -m benchmarks.conformance [--peers attn jax.nn flax.linen] [--output table.md]

Nothing is timed. Besides jax.nn and flax.linen it takes equinox and tokamax where they are
installed (``pip install equinox tokamax``); each behind an adapter to the calling convention of
``jax.nn.dot_product_attention``, which refuses what the library has no argument for.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import attn
import attn.testing


def flax_linen() -> Callable[..., Any]:
    """Returns ``flax.linen.dot_product_attention``, which has bias and mask."""
    import flax.linen

    def attention(query, key, value, bias=None, mask=None):
        return flax.linen.dot_product_attention(query, key, value, bias, mask)

    return attention


def equinox() -> Callable[..., Any]:
    """Returns what ``equinox.nn.MultiheadAttention`` computes, for all rows and heads.

    It is a function of one head, ``[T, H]``, with a mask; its module maps it over heads, and its
    user over rows.
    """
    from equinox.nn._attention import dot_product_attention

    def one_head(query, key, value, mask):
        return dot_product_attention(query, key, value, mask=mask)

    def attention(query, key, value, mask=None):
        if not query.shape[-2] == key.shape[-2] == value.shape[-2]:
            raise ValueError("query, key and value differ in their numbers of heads")
        if mask is not None:
            *batch, num_queries, num_heads, _ = query.shape
            mask = jnp.broadcast_to(mask, (*batch, num_heads, num_queries, key.shape[-3]))
        of_mask = None if mask is None else 0
        function = jax.vmap(one_head, in_axes=(1, 1, 1, of_mask), out_axes=1)
        for _ in query.shape[:-3]:
            function = jax.vmap(function, in_axes=(0, 0, 0, of_mask))
        return function(query, key, value, mask)

    return attention


def tokamax(implementation: str) -> Callable[..., Any]:
    """Returns ``tokamax.dot_product_attention`` by one of its implementations for any platform."""
    import tokamax
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # It would read our command line as its own.
    return functools.partial(tokamax.dot_product_attention, implementation=implementation)


PEERS: dict[str, tuple[str, Callable[[], Callable[..., Any]]]] = {
    "attn": ("attn", lambda: attn.dot_product_attention),
    "jax.nn": ("jax", lambda: jax.nn.dot_product_attention),
    "flax.linen": ("flax", flax_linen),
    "equinox": ("equinox", equinox),
    "tokamax xla": ("tokamax", lambda: tokamax("xla")),
    "tokamax xla_chunked": ("tokamax", lambda: tokamax("xla_chunked")),
}
"""By name: the package that must be installed, and how the function is made."""

MARKS = {"passed": "yes", "failed": "**no**", "not offered": "-"}
RAISES = "raises"
"""Instead of no, where a transform raises: at least nobody is given a wrong number."""


def main() -> None:
    """Prints a report for each function, and a table of all."""
    # Not tyro, as elsewhere: tokamax asks for a version of typeguard that tyro cannot use.
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--output", type=pathlib.Path, help="where the table goes, in Markdown")
    options = parser.parse_args()
    reports = []
    for name in options.peers:
        package, make = PEERS[name]
        if importlib.util.find_spec(package) is None:
            print(f"{name}: {package} is not installed\n")
            continue
        reports.append(attn.testing.check(make(), name=name))
        print(reports[-1], end="\n\n")
    text = table(reports)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")


def table(reports: list[attn.testing.Report]) -> str:
    """Returns a Markdown table: a line for every law that someone breaks, a column for each."""
    names = [report.name for report in reports]
    lines = [f"| law | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for results in zip(*(report.results for report in reports), strict=True):
        if any(result.status == "failed" for result in results):
            law = results[0].law
            lines.append(f"| {law.group}: {law.name} | {' | '.join(map(mark, results))} |")
    sums = (f"{len(r.passed)} / {len(r.passed) + len(r.failed)}" for r in reports)
    lines.append(f"| **hold, of those offered** | {' | '.join(sums)} |")
    versions = sorted({PEERS[name][0] for name in names} - {"attn"})
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in versions)
    note = (
        f"Of {len(attn.testing.LAWS)} laws those that someone breaks; *raises*: a derivative is "
        f"refused, not wrong; -: not offered. {found}; on {jax.devices()[0].platform}."
    )
    return "\n".join([*lines, "", note])


def mark(result: attn.testing.Result) -> str:
    """Returns what a table says of one law."""
    return RAISES if result.reason.startswith(RAISES) else MARKS[result.status]


if __name__ == "__main__":
    main()
