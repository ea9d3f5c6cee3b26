"""Reads pages a second time, and computes what they say."""

import html.parser
import re

import numpy as np

from experiments import report
from experiments.report.facts import noted
from experiments.results import Results

ALL = {"attention": [1.0, 0.995, 0.9], "window": [0.25, 0.5, 0.3]}


class Page(html.parser.HTMLParser):
    """Collects tables, identifiers, links and whatever refers to a resource."""

    VOID = ("meta", "img", "br", "hr", "input", "link", "path", "rect", "line")

    def __init__(self, text):
        super().__init__()
        self.tables, self.anchors, self.links, self.resources = [], set(), [], []
        self.open, self.cell = [], None
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors.add(attributes.get("id"))
        if tag == "a":
            self.links.append(attributes["href"])
        self.resources += [attributes[x] for x in ("src", "srcset", "poster") if x in attributes]
        assert tag not in ("link", "iframe", "object"), "a resource from elsewhere"
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and "table" in self.open:
            self.tables[-1].append([])
        elif tag in ("td", "th") and "table" in self.open:
            self.cell = ""

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag
        if tag in ("td", "th") and self.cell is not None:
            self.tables[-1][-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data


def markdown_tables(text):
    tables = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.splitlines()
        if lines and lines[0].startswith("| "):
            cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
            assert len({len(line) for line in cells}) == 1, "rows of different widths"
            assert set(cells[1]) == {" --- "}
            tables.append([[cell.strip() for cell in line] for line in cells])
    return tables


def wilson(successes, trials):
    """The roots of the score equation (p - k/n)^2 = z^2 p (1 - p) / n."""
    z2, rate = 1.96**2 / trials, successes / trials
    roots = np.roots([1 + z2, -2 * rate - z2, rate**2])
    return sorted(roots.real)


def row_of(table, name):
    (found,) = [row for row in table if row[0] == name]
    return dict(zip(table[0], found, strict=True))


def write(tmp_path, *folders):
    out = tmp_path / "page"
    pages = report.write(list(folders), out)
    assert pages == [out / "report.html", out / "report.md"]
    return pages[0].read_text(encoding="utf-8"), pages[1].read_text(encoding="utf-8")


def facts(folder):
    return "\n".join(noted(Results.load(folder)))
