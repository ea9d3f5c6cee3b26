"""``python -m experiments.report``: see the package."""

import argparse
import pathlib
import sys

from rich.console import Console

from experiments.records import SuiteFolder, folders_of
from experiments.report import terminal_table, update_readme, write
from experiments.results import Results


def main(arguments: list[str]) -> int:
    """Returns the exit status of a command line; 1 if what it names cannot be reported."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description="Writes report.html and report.md from the records of runs.",
    )
    parser.add_argument(
        "runs", nargs="+", type=pathlib.Path, help="folders of runs or of suites, or their parents"
    )
    parser.add_argument("--out", type=pathlib.Path, help="directory of the pages")
    parser.add_argument("--readme", type=pathlib.Path, help="put the summary between its markers")
    chosen = parser.parse_args(arguments)
    try:
        folders = [folder for path in chosen.runs for folder in folders_of(path)]
        suite = SuiteFolder(chosen.runs[0])
        claim, place, commands = "", folders[0].path, {}
        if suite.exists:  # What is named beside it goes onto its page.
            claim, place, commands = suite.claim, suite.path, suite.commands
        elif len(folders) > 1:
            place = place.parent / "report"
        out = chosen.out or place
        pages = write(folders, out, claim, commands)
        if chosen.readme is not None:
            update_readme(chosen.readme, [Results.load(folder) for folder in folders], out)
            pages.append(chosen.readme)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console = Console()
    for folder in folders:
        console.print(terminal_table(folder))
    console.print(f"report: {' and '.join(map(str, pages))}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
