"""Prints which laws of attention hold for a function; exit status 1 if one does not.

python -m attn.testing jax.nn:dot_product_attention
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from attn.testing import FEATURES, LAWS, check


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser("python -m attn.testing", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("function", nargs="?", help="module:function, of the working directory too")
    parser.add_argument(
        "--takes", nargs="*", metavar="FEATURE", help=f"some of: {', '.join(FEATURES)}"
    )
    parser.add_argument("--laws", nargs="*", metavar="LAW", help="names of laws or their groups")
    parser.add_argument("--list", action="store_true", help="list the laws, and do nothing else")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"{law.group}: {law.name}. {law.statement}" for law in LAWS))
        return 0
    module, colon, name = (options.function or "").partition(":")
    if not (module and colon and name):
        parser.error("expected module:function, such as jax.nn:dot_product_attention")
    try:
        function: Any = importlib.import_module(module)
        for attribute in name.split("."):
            function = getattr(function, attribute)
        report = check(function, takes=options.takes, laws=options.laws, name=options.function)
    except (ImportError, AttributeError, ValueError) as error:
        parser.error(str(error))
    print(report)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
