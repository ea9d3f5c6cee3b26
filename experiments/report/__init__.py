"""The pages of runs, made from their records alone: HTML in one file, Markdown with figures.

python -m experiments.report RUNS... [--out DIR] [--readme README.md]
"""

from experiments.report.page import write
from experiments.report.summary import update_readme
from experiments.report.terminal import terminal_table

__all__ = ["terminal_table", "update_readme", "write"]
