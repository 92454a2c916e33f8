"""README and the pages it links to say what is there: code runs, tables are those of the results, links lead on."""

import re
import subprocess
import sys

import nbformat
import pytest

from maml_edu.experiments.results import omniglot_runs, read_results
from tools.stored_tables import PAGES, README, RESULTS, ROOT, between


@pytest.mark.parametrize("page, name", [(page, name) for page, tables in PAGES.items() for name in tables])
def test_tables_are_those_of_the_stored_numbers(page, name):
    text = page.read_text(encoding="utf-8")
    start, end = between(text, name)
    assert text[start:end] == PAGES[page][name](), "python tools/stored_tables.py renews it"


def test_the_minutes_of_the_omniglot_runs():
    runs = [r for group in omniglot_runs(read_results(RESULTS)).values() for r in group.values()]
    minutes = sorted(round(r["provenance"]["seconds"] / 60) for r in runs)
    assert f"took {minutes[0]} to {minutes[-1]} minutes on two CPU cores" in README.read_text(encoding="utf-8")
    assert {r["protocol"]["filters"] for r in runs} == {32} and {r["protocol"]["tasks"] for r in runs} == {600}


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.slow
def test_the_code_runs():
    """With fewer iterations than the README has, for time; the promise it makes is kept with room to spare."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) < 15
    shorter = "import torch; torch.manual_seed(0); torch.set_num_threads(1)\n" + code.replace(
        "range(1000)", "range(400)"
    )
    run = subprocess.run([sys.executable, "-c", shorter], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    before, after = map(float, re.search(r"([\d.]+) before, ([\d.]+) after one step", run.stdout).groups())
    assert before > 2.5 and after < 1.2, run.stdout


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in PAGES)])
def test_every_link_leads_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = set(re.findall(r"\]\((?!http)([^)#]+)\)", text))
    assert not [t for t in targets if not ((ROOT / page).parent / t).exists()]
    scripts = set(re.findall(r"\b(?:tools|tests|benchmarks|maml_edu)/[\w/]+\.py", text))
    assert not [s for s in scripts if "NN" not in s and not (ROOT / s).exists()]


def test_every_notebook_is_listed():
    targets = set(re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text(encoding="utf-8")))
    unlisted = [p.name for p in (ROOT / "notebooks").glob("*.ipynb") if f"notebooks/{p.name}" not in targets]
    assert not unlisted


def test_minutes_are_those_the_notebooks_announce():
    rows = re.findall(r"\]\((notebooks/\d\d_\w+\.ipynb)\) \|.*?\| (\d+) \|", README.read_text(encoding="utf-8"))
    assert len(rows) == len(list((ROOT / "notebooks").glob("*.ipynb")))
    for path, minutes in rows:
        contract = nbformat.read(ROOT / path, as_version=4).cells[0].source
        assert re.search(r"(\d+) minutes", contract)[1] == minutes, path


@pytest.mark.parametrize("tool", ["jupyter lab", "pytest -n 2"])
def test_two_set_up_commands_each_on_one_line(tool):
    lines = re.findall(r"```bash\n(python3 -m venv.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(lines) == 2 and all(line.count("\n") == 1 for line in lines)
    assert sum(tool in line for line in lines) == 1
