"""Pages are made from records alone, are whole, and open in a real browser.

See ``test_viewer`` for when that is skipped.
"""

import json
import re

import pytest

from experiments import report
from experiments.config import EvaluateConfig
from experiments.report.blocks import Details, Picture, Pictures
from experiments.report.page import page, pictures_of, viewer_examples
from experiments.results import Results
from experiments.tasks import Adding, NoisyDigits
from tests.experiments.handmade import make_run, small_config
from tests.experiments.report.reading import ALL, Page, facts, markdown_tables, write


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


def test_what_a_person_wrote_is_escaped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Where no config is of the name of the run.
    text, markdown = write(tmp_path, make_run(tmp_path, small_config(), ALL))
    assert "it &lt;everywhere&gt;; a window | does not" in text
    assert "a window | does not" in markdown
    assert "python -m experiments.run 'configs/a b.py' --seed 3" in markdown


def test_the_search_shows_every_rate_and_seed(tmp_path):
    text, _ = write(tmp_path, make_run(tmp_path, small_config(), ALL))
    table = next(t for t in Page(text).tables if t[0] == ["model", "0.001", "0.01"])
    tried = "0.500 (1.5; 40), 0.500 (1.5; 40)"
    assert table[1] == ["attention", tried, f"{tried.replace('0.500', '0.995')} chosen"]


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


@pytest.mark.parametrize("task", [small_config().task, Adding(length=16, tolerance=0.04)])
def test_the_viewer_says_which_answers_are_right(tmp_path, task):
    """A number is right if it is off by less than the tolerance, not if it is printed alike."""
    config = small_config(task=task, evaluate=EvaluateConfig())
    folder = make_run(tmp_path, config, ALL)
    example, *_ = viewer_examples(Results.load(folder))
    assert [answer.right for answer in example.answers] == [False, True]


def test_data_need_not_be_there(tmp_path, monkeypatch):
    config = small_config(task=NoisyDigits(length=16), evaluate=EvaluateConfig())
    folder = make_run(tmp_path, config, ALL, finished=False)
    monkeypatch.setattr(NoisyDigits, "load", lambda *_: pytest.fail("data was asked for"))
    assert "AntisymmetricRNN" in write(tmp_path, folder)[1]


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
