"""README says what is there: its code runs, its table is that of the stored results, its links lead somewhere."""

import re
import subprocess
import sys

import nbformat
import pytest

from tools.readme_tables import README, ROOT, TABLES, between


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_those_of_the_stored_numbers(name):
    text = README.read_text(encoding="utf-8")
    start, end = between(text, name)
    assert text[start:end] == TABLES[name]()


def test_the_code_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) == 15
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.strip().splitlines()[-1]) < 3.0  # better than the floor of anyone who may not adapt


def test_every_notebook_is_listed_and_every_link_leads_somewhere():
    text = README.read_text(encoding="utf-8")
    targets = set(re.findall(r"\]\((?!http)([^)#]+)\)", text))
    missing = [t for t in targets if not (ROOT / t).exists()]
    assert not missing
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
