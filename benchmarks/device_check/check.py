"""One check: what is said is kept as Markdown, what is found as JSON, at every word."""

import datetime
import importlib.metadata
import json
import pathlib
import re
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import jax

from attn.testing.subject import summary
from benchmarks.device_check.sizes import Sizes
from benchmarks.machine import machine
from experiments.environment import commit

PASSED, FAILED, MEASURED, RAISED, SKIPPED = "passed", "failed", "measured", "raised", "skipped"
"""How a part ended; one that has nothing to pass is measured."""
PACKAGES = "jax", "libtpu", "nvidia-cu", "torch", "tokamax", "triton"
"""What the names begin with of packages that are written down."""


class OutOfTime(Exception):
    """The time of a part was over before it had found anything."""


class Check:
    """Parts done one after another; what is known so far is on disk."""

    def __init__(self, folder: pathlib.Path, sizes: Sizes):
        now = datetime.datetime.now(datetime.UTC)
        device = re.sub(r"\W+", "-", machine()["device"]).strip("-").lower()
        self.path = folder / f"device_check-{device}-{now:%Y%m%d-%H%M%S}"
        """Of both files, less what they end in."""
        self.sizes = sizes
        self.record: dict[str, Any] = {"date": now.isoformat(timespec="seconds"), **machine()}
        self.record |= {"platform": jax.default_backend(), "packages": _packages()}
        self.record |= {"commit": commit(), "parts": {}}
        self.found: dict[str, Any] = {}
        """Of the part that runs; its ``summary`` is a line at the end."""
        self.until = 0.0
        """When the part that runs should begin nothing more, by ``time.monotonic``."""
        self._lines: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)

    def say(self, *lines: str) -> None:
        """Prints lines, and writes down all that was said and found."""
        print(*lines, sep="\n", flush=True)
        self._lines += lines
        self.path.with_suffix(".md").write_text("\n".join(self._lines) + "\n")
        self.path.with_suffix(".json").write_text(json.dumps(self.record, indent=1) + "\n")

    def table(self, *columns: str) -> Callable[..., None]:
        """Says the head of a table; returns what says a row of it."""
        self.say("", _row(columns), _row("---" for _ in columns))
        return lambda *cells: self.say(_row(cells))

    def is_late(self) -> bool:
        """Returns whether the part that runs should begin nothing more."""
        return time.monotonic() >= self.until

    def do(self, name: str, part: Callable[["Check"], bool | None], until: float) -> None:
        """Runs a part that is to end by then; if it raises, that is what is found."""
        skipped = {"status": SKIPPED, "summary": "no time was left", "seconds": 0.0}
        self.found = self.record["parts"][name] = dict(skipped)
        self.until = until
        if self.is_late():
            return
        self.found |= {"status": RAISED, "summary": "it has not come to its end"}
        self.say("", f"## {name}")
        begun = time.monotonic()
        try:
            self.found["status"] = {True: PASSED, False: FAILED, None: MEASURED}[part(self)]
        except OutOfTime:
            self.found |= skipped
        except Exception as error:
            self.found["summary"] = summary(error)
            self.found["traceback"] = traceback.format_exc()
            self.say("", "```", self.found["traceback"].rstrip(), "```")
        self.found["seconds"] = round(time.monotonic() - begun, 1)
        self.say("", f"{name}: {self.found['status']}, {self.found['seconds']} s")


def _packages() -> dict[str, str]:
    """Returns the versions of what programs are made and timed by, where it is installed."""
    names = {x.name for x in importlib.metadata.distributions() if x.name}  # Of a broken one, None.
    return {x: importlib.metadata.version(x) for x in sorted(names) if x.startswith(PACKAGES)}


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
