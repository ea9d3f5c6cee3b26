"""``python -m experiments.report``: what it writes, and what it refuses."""

import html
import re
import shutil

import pytest

from experiments import report
from experiments.records import RunFolder, SuiteFolder
from experiments.report.__main__ import main
from tests.experiments.handmade import make_run, small_config
from tests.experiments.report.reading import ALL, Page


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
    assert "| induction | 2/3 [0.21, 0.94] 0.995 | 0/3 [0.00, 0.56] 0.300 | 0.062 |" in text
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
def test_the_page_of_a_suite_has_its_claim_and_its_order(tmp_path, monkeypatch, inside):
    folders = [make_run(tmp_path, small_config(seed=i), ALL, name=f"run{i}") for i in (2, 0, 1)]
    own = ["own.py", "--models", *ALL, "--seed", "7"]
    commands = {folder.path.name: own for folder in folders[:1]}
    suite = SuiteFolder.of("All of it <together>.", folders, commands, "suite", tmp_path)
    other = SuiteFolder.of("All of it <together>.", folders[:2], commands, "suite", tmp_path)
    assert other.path != suite.path, "another suite, such as a quick one, has another page"
    for folder in folders if inside else ():
        shutil.move(folder.path, suite.path)
    assert main([str(suite.path)]) == 0
    page = (suite.path / "report.html").read_text()
    assert "All of it &lt;together&gt;." in page
    assert [row[0] for row in Page(page).tables[0]] == ["task", "run2", "run0", "run1"]
    # The first has a command of its own; of the others all is known that their start says.
    page = html.unescape(page)
    assert page.count("python -m experiments.run 'configs/a b.py' --seed 3") == 2
    assert f"experiments.run own.py --models {' '.join(ALL)} --seed 7\n" in page
    assert re.findall(r"experiments.run own.py --seed 7 --models (\w+)", page) == list(ALL)
    beside = make_run(tmp_path, small_config(seed=3), ALL, name="beside")
    # One whose config is there, but which was run with others, is run again by that.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs/own").mkdir(parents=True)
    (tmp_path / "configs/own/beside.py").touch()
    assert main([str(suite.path), str(beside.path)]) == 0
    page = (suite.path / "report.html").read_text()
    plain = html.unescape(page)
    assert "experiments.run configs/own/beside.py --seed 3\n" in plain
    alone = r"experiments.run configs/own/beside.py --seed 3 --models (\w+)"
    assert re.findall(alone, plain) == list(ALL)
    rows = [row[0] for row in Page(page).tables[0]]
    assert rows == ["task", "run2", "run0", "run1", "beside"]


def test_the_command_line_refuses_what_is_no_run(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "is no run folder" in capsys.readouterr().err
    suite = SuiteFolder.of("", [RunFolder(tmp_path / "gone-1")], {}, "suite", tmp_path)
    assert main([str(suite.path)]) == 1
    assert re.search(r"gone-1 is missing: .*suite.json names it", capsys.readouterr().err)
    with pytest.raises(ValueError, match="at least one run folder"):
        report.write([], tmp_path)
