"""Pages are made from records alone and say what the records say, computed here a second time.

The page is opened in a real browser; see ``test_viewer`` for when that is skipped.
"""

import html.parser
import io
import json
import math
import os
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy import stats

from experiments import figures, report
from experiments.config import EvaluateConfig, SweepConfig
from experiments.records import SuiteFolder
from experiments.report import words
from experiments.report.__main__ import main
from experiments.report.blocks import Details, Picture, Pictures
from experiments.report.facts import noted
from experiments.report.page import page, pictures_of
from experiments.results import Results
from experiments.tasks import Adding, Induction, NoisyDigits, Recall, StringCopy
from tests.experiments.handmade import make_run, rewrite, small_config

ALL = {"attention": [1.0, 0.995, 0.9], "window": [0.25, 0.5, 0.3]}


@pytest.fixture(autouse=True)
def drawn(request, monkeypatch):
    """Stands for the figures, which take seconds a page; the browser sees the real ones."""
    if "browser" in request.node.name:
        return
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4)).save(buffer, format="png")
    pictures = [figures.Drawn(name, f"Of {name}.", buffer.getvalue()) for name in ("one", "two")]
    monkeypatch.setattr(figures, "draw_all", lambda results: pictures if results.models else [])
    for name in ("draw_overview", "draw_headline"):
        monkeypatch.setattr(figures, name, lambda runs: buffer.getvalue())


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


def test_the_table_of_models_says_what_the_records_say(tmp_path):
    folder = make_run(tmp_path, small_config(), ALL)
    text, markdown = write(tmp_path, folder)
    table = Page(text).tables[0]
    for model, accuracies in ALL.items():
        row = row_of(table, model)
        low, high = wilson(sum(a >= 0.99 for a in accuracies), 3)
        successes = f"{sum(a >= 0.99 for a in accuracies)}/3 [{low:.2f}, {high:.2f}]"
        assert row["runs at 99% [Wilson 95 %]"] == successes.replace("-0.00", "0.00")
        assert row["every seed"] == " ".join(f"{a:.3f}" for a in accuracies)
        assert row["median accuracy"] == f"{sorted(accuracies)[1]:.3f}"
        # A right answer costs .1 bits and a wrong one 3: see handmade.answers.
        losses = sorted(0.1 * a + 3.0 * (1 - a) for a in accuracies)
        assert row["bits / answer"] == f"{losses[1]:.3g}"
        assert row["rate"] == "0.01 (edge)"
        assert row["parameters"] == "1,234"
    # Curves rise in a line to the accuracy after 40 steps, seen every 10.
    assert row_of(table, "attention")["steps to 99%"] == "40"
    assert row_of(table, "window")["steps to 99%"] == "> 40"
    chance = row_of(table, "floor: chance")
    assert chance["median accuracy"] == f"{1 / 16:.3f}"
    assert chance["bits / answer"] == f"{math.log2(16):.3g}"
    first = markdown_tables(markdown)[0]
    plain = [[cell.replace("&lt;", "<") for cell in row] for row in first]
    assert [plain[0], *plain[2:]] == table


def test_differences_are_paired_by_seed(tmp_path):
    folder = make_run(tmp_path, small_config(), ALL)
    table = next(t for t in Page(write(tmp_path, folder)[0]).tables if "minus" in t[0][0])
    row = row_of(table, "window")
    differences = np.subtract(ALL["window"], ALL["attention"])
    low, high = stats.ttest_1samp(differences, 0).confidence_interval()
    assert row["accuracy [95 %]"] == f"{differences.mean():+.3f} [{low:.2f}, {high:.2f}]"
    assert row["sign test p"] == "0.25"  # three of three: 2 / 2^3
    assert row["pairs"] == "3"


def test_tables_by_length_and_distance(tmp_path):
    folder = make_run(tmp_path, small_config(), ALL)
    tables = Page(write(tmp_path, folder)[0]).tables
    by_length = next(t for t in tables if t[0] == ["model", "16", "32"])
    assert by_length[1][1:] == ["0.995", "0.995"]
    results = Results.load(folder)
    header = ["model", *(f"{a}-{b}" if b > a else str(a) for a, b in results.bins())]
    by_distance = next(t for t in tables if t[0] == header)
    seeds = [a["by_distance"]["accuracy"] for a in results.asked("attention")]
    expected = [f"{sorted(column)[1]:.3f}" for column in zip(*seeds, strict=True)]
    assert row_of(by_distance, "attention") == dict(
        zip(header, ["attention", *expected], strict=True)
    )


def test_what_lies_beyond_the_reach_is_marked(tmp_path):
    config = small_config(model=small_config().model.__class__(window=2, short_convolution=0))
    folder = make_run(tmp_path, config, ALL)
    tables = Page(write(tmp_path, folder)[0]).tables
    by_distance = next(t for t in tables if t[0][1] == "1")
    window = row_of(by_distance, "window")
    assert all((value[0] == "(") == (int(low) > 2) for low, value in list(window.items())[1:])
    assert all(value[0] != "(" for value in row_of(by_distance, "attention").values())
    assert "Beyond its reach of 2 tokens window answers" in facts(folder)


def test_what_contradicts_or_fails_is_noted(tmp_path):
    worse = {"attention": [0.9, 0.8, 0.91], "window": [1.0, 0.93, 0.9]}
    statuses = {"window": ["finished", "diverged", "finished"]}
    folder = make_run(tmp_path, small_config(), worse, statuses=statuses)
    sentences = facts(folder)
    for sentence in (
        "window has the higher median accuracy (0.930 against 0.900) and the lower median loss "
        "(0.303 against 0.39 bits / answer) than attention.",
        "No run of these reached 99%: attention.",
        "The seeds of window disagree: 1 of 3 reached 99%; accuracy 0.900 to 1.000.",
        "1 of 3 fresh runs of window diverged (seed 1).",
        "The chosen learning rate is at the edge of those tried: attention (0.01); window (0.01).",
        "At 32 tokens these have the higher median accuracy than attention (0.900): window 0.930.",
        "3 seeds a model",
    ):
        assert sentence in sentences
    text, markdown = write(tmp_path, folder)
    visible = re.sub(r"<details.*?</details>", "", text, flags=re.DOTALL)
    assert "1 of 3 fresh runs of window diverged" in visible
    assert "1 of 3 fresh runs of window diverged" in markdown
    assert "0.930 (diverged)" in Page(text).tables[0][2][7]


def test_a_diverged_run_is_no_success_however_well_it_did_before(tmp_path):
    values = {"attention": [1.0, 1.0, 1.0], "window": [1.0, 1.0, 1.0]}
    statuses = {"window": ["diverged", "finished", "diverged"]}
    results = Results.load(make_run(tmp_path, small_config(), values, statuses=statuses))
    assert results.success("attention").successes == 3
    assert results.success("window").successes == 1
    assert results.success("window").trials == 3


def test_nothing_is_noted_that_is_not_so(tmp_path):
    values = {"attention": [1.0] * 6, "window": [0.05] * 6}
    sweep = SweepConfig(learning_rates=(1e-4, 1e-3, 1e-2), tuning_seeds=2, seeds=6)
    folder = make_run(tmp_path, small_config(sweep=sweep), values)
    for model in values:
        rewrite(folder, model, lambda e: e.update(learning_rate=1e-3))
    assert noted(Results.load(folder)) == ["No run of these reached 99%: window."]


def test_steps_to_the_threshold_are_censored(tmp_path):
    folder = make_run(tmp_path, small_config(), {"attention": [1.0, 0.5, 0.5]})
    steps = Results.load(folder).steps_to_threshold("attention")
    assert steps.median is None
    assert steps.shares == pytest.approx((2 / 3,))
    assert "&gt; 40" in write(tmp_path, folder)[0]


@pytest.mark.parametrize("several", [False, True])
def test_a_page_is_complete_in_itself(tmp_path, several):
    folders = [
        make_run(tmp_path / "runs", small_config(seed=s), ALL, name=f"run{s}")
        for s in range(2 if several else 1)
    ]
    text, markdown = write(tmp_path, *folders)
    parsed = Page(text)
    assert not re.search(r"https?://|@import|url\(|file:", text)
    assert parsed.resources
    assert all(x.startswith("data:image/png;base64,") for x in parsed.resources)
    assert all(link[0] == "#" and link[1:] in parsed.anchors for link in parsed.links)
    assert len(parsed.links) == (2 if several else 0)
    files = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", markdown)
    assert len(files) == len(set(files)) == len(parsed.resources)
    written = (tmp_path / "page" / "figures").iterdir()
    assert sorted(files) == sorted(f"figures/{path.name}" for path in written)
    assert len(markdown_tables(markdown)) == len(parsed.tables)
    assert str(tmp_path) not in text + markdown


def test_what_a_person_wrote_is_escaped(tmp_path):
    text, markdown = write(tmp_path, make_run(tmp_path, small_config(), ALL))
    assert "it &lt;everywhere&gt;; a window | does not" in text
    assert "a window | does not" in markdown
    assert "python -m experiments.run 'configs/a b.py' --seed 3" in markdown


def test_the_search_shows_every_rate_and_seed(tmp_path):
    text, _ = write(tmp_path, make_run(tmp_path, small_config(), ALL))
    table = next(t for t in Page(text).tables if t[0] == ["model", "0.001", "0.01"])
    tried = "0.500 (1.5; 40), 0.500 (1.5; 40)"
    assert table[1] == ["attention", tried, f"{tried} chosen"]


def test_a_run_that_has_not_finished_says_so(tmp_path):
    part = make_run(tmp_path, small_config(), {"attention": ALL["attention"]}, finished=False)
    none = make_run(tmp_path, small_config(seed=9), {}, finished=False, name="none")
    assert "Not evaluated yet: window." in facts(part)
    text, markdown = write(tmp_path, part, none)
    assert "Not evaluated yet: attention; window." in text
    assert "floor" not in Page(text).tables[0][-1][0]
    assert "The run has not finished" in markdown
    report.terminal_table(none)


def test_reading_leaves_no_trace(tmp_path):
    folder = make_run(tmp_path, small_config(), {"attention": ALL["attention"]}, finished=False)
    before = sorted(folder.path.rglob("*"))
    write(tmp_path, folder)
    assert sorted(folder.path.rglob("*")) == before


def test_data_need_not_be_there(tmp_path, monkeypatch):
    config = small_config(task=NoisyDigits(length=16), evaluate=EvaluateConfig())
    folder = make_run(tmp_path, config, ALL, finished=False)
    monkeypatch.setattr(NoisyDigits, "load", lambda *_: pytest.fail("data was asked for"))
    assert "AntisymmetricRNN" in write(tmp_path, folder)[1]


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Recall(vocab_size=64, length=64, num_pairs=4), "H3 (published), L 64, P 4"),
        (Induction(length=16), "MHA-RoPE (published)"),
        (Adding(length=16), "LSTM (published)"),
        (StringCopy(max_characters=8), "100 times fewer samples"),
    ],
)
def test_published_numbers_stand_beside_ours_and_are_marked(tmp_path, task, expected):
    config = small_config(task=task, evaluate=EvaluateConfig())
    is_number = task.num_classes is None
    _, markdown = write(tmp_path, make_run(tmp_path, config, ALL, is_number=is_number))
    assert expected in markdown
    assert "Published" in markdown


def test_numbers_are_squared_errors(tmp_path):
    config = small_config(task=Adding(length=16), evaluate=EvaluateConfig())
    text, _ = write(tmp_path, make_run(tmp_path, config, ALL, is_number=True))
    assert "squared error" in Page(text).tables[0][0]
    assert "off by less than 0.04" in text


def test_one_seed_has_no_interval(tmp_path):
    sweep = SweepConfig(learning_rates=(1e-3,), seeds=1)
    folder = make_run(tmp_path, small_config(sweep=sweep), {"attention": [1.0], "window": [0.5]})
    text, _ = write(tmp_path, folder)
    assert "[none of one pair]" in text
    assert "nan" not in text.lower().split("<script")[0].split("base64")[0]
    assert "One learning rate, 0.001, was used for every model" in facts(folder)


def test_the_summary_of_several_runs(tmp_path):
    variants = ("attention", "attention,position=rotary", "window")
    values = {"attention": [0.5] * 3, "attention,position=rotary": [1.0] * 3, "window": [0.3] * 3}
    first = make_run(tmp_path, small_config(models=variants), values, name="first")
    second = make_run(tmp_path, small_config(), ALL, name="second")
    table = Page(write(tmp_path, first, second)[0]).tables[0]
    assert table[0] == ["task", "attention", "window", "chance"]
    assert table[1] == ["first", "3/3 1.000 (position=rotary)", "0/3 0.300", "0.062"]
    assert table[2] == ["second", "2/3 0.995", "0/3 0.300", "0.062"]


def test_a_terminal_table_fits_in_a_hundred_columns(tmp_path):
    models = ("attention,position=rotary", "long_convolution,short_convolution=0")
    values = {model: [0.99951, 0.5, 0.3] for model in models}
    config = small_config(models=models)
    folder = make_run(tmp_path, config, values, statuses={models[1]: ["diverged"] * 3})
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(report.terminal_table(folder))
    console.file.close()
    text = console.export_text()
    for words_ in ("attention,position=rotary", "1/3", "0.01!", "floor: chance"):
        assert words_ in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_readme_is_changed_between_its_markers_only(tmp_path, capsys):
    runs = tmp_path / "runs"
    make_run(runs, small_config(), ALL)
    readme = tmp_path / "README.md"
    readme.write_text("# Top\n\n<!-- results -->\nold\n<!-- /results -->\n\nbottom\n")
    arguments = [str(runs), "--out", str(tmp_path / "results"), "--readme", str(readme)]
    assert main(arguments) == 0
    text = readme.read_text()
    assert text.startswith("# Top\n\n<!-- results -->\n")
    assert text.endswith("<!-- /results -->\n\nbottom\n")
    assert "old" not in text
    assert "| induction | 2/3 0.995 | 0/3 0.300 | 0.062 |" in text
    assert "commit 0123456789ab" in text
    (figure,) = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert (tmp_path / figure).is_file()
    assert main(arguments) == 0
    assert readme.read_text() == text
    readme.write_text("no markers")
    assert main(arguments) == 1
    assert "expected <!-- results -->" in capsys.readouterr().err
    assert readme.read_text() == "no markers"


@pytest.mark.parametrize("inside", [False, True])
def test_the_page_of_a_suite_has_its_claim_and_its_order(tmp_path, inside):
    suite = SuiteFolder(tmp_path / "suite")
    parent = suite.path if inside else tmp_path
    folders = [make_run(parent, small_config(seed=i), ALL, name=f"run{i}") for i in (2, 0, 1)]
    suite.write("All of it <together>.", folders)
    assert main([str(suite.path)]) == 0
    page = (suite.path / "report.html").read_text()
    assert "All of it &lt;together&gt;." in page
    assert [row[0] for row in Page(page).tables[0]] == ["task", "run2", "run0", "run1"]


def test_the_command_line_refuses_what_is_no_run(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "is no run folder" in capsys.readouterr().err
    with pytest.raises(ValueError, match="at least one run folder"):
        report.write([], tmp_path)


@pytest.mark.parametrize(
    ("value", "printed"),
    [(1.0, "1.000"), (0.0, "0.000"), (0.99951, "0.99951"), (0.0004, "0.00040"), (0.5, "0.500")],
)
def test_what_is_not_quite_one_is_not_printed_as_one(value, printed):
    assert words.share(value) == printed


def test_the_config_on_the_page_is_that_of_the_run(tmp_path):
    folder = make_run(tmp_path, small_config(), ALL)
    _, markdown = write(tmp_path, folder)
    (text,) = re.findall(r"```json\n(.*?)\n```", markdown, re.DOTALL)
    resolved = json.loads((folder.path / "config.json").read_text())["config"]
    assert json.loads(text) == resolved


@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (390, "dark")])
def test_the_page_works_in_a_browser(tmp_path, open_file, width, scheme):
    folders = [make_run(tmp_path, small_config(seed=s), ALL, name=f"r{s}") for s in range(2)]
    write(tmp_path, *folders)
    page = open_file(
        tmp_path / "page" / "report.html",
        color_scheme=scheme,
        viewport={"width": width, "height": 800},
    )
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("[...document.images].every(x => x.naturalWidth > 0)")
    assert page.locator("section.attention-viewer").count() == 2
    assert page.locator("section.attention-viewer").first.locator("canvas").count() > 0
    page.click("nav a >> nth=1")
    assert page.url.endswith("#run-2")


def test_pictures_of_a_page_are_found_wherever_they_stand(tmp_path):
    results = Results.load(make_run(tmp_path, small_config(), ALL))
    blocks = page([results])
    hidden = Details("more", [Pictures([Picture("figures/x.png", "x", "X.", b"")])])
    names = [picture.file for picture in pictures_of([*blocks, hidden])]
    assert names == ["figures/one.png", "figures/two.png", "figures/x.png"]
