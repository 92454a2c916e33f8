"""A student changes a cell: every notebook must run to its end with the changed constants, whatever it shows."""

import nbformat
import pytest
from support.notebook_changes import CHANGES
from support.run_notebook import NOTEBOOKS, changed_sources, report, run_apart

# The changed runs go through every cell; a notebook without any is run as it is.
RUNS = [
    pytest.param(
        path,
        changes,
        id=f"{path.stem}-{', '.join(f'{k}={v[:20]}' for k, v in changes.items()) or 'unchanged'}",
    )
    for path in sorted(NOTEBOOKS.glob("*.ipynb"))
    for changes in CHANGES.get(path.stem, [{}])
]


@pytest.mark.slow
@pytest.mark.parametrize("path, changes", RUNS)
def test_notebook_runs(path, changes):
    result = run_apart(path, changes)
    assert result.returncode == 0, report(result)


def test_changes_name_existing_notebooks():
    missing = [stem for stem in CHANGES if not (NOTEBOOKS / f"{stem}.ipynb").exists()]
    assert not missing, f"CHANGES names notebooks that are not there: {missing}"


# The machinery itself, on a toy notebook.


@pytest.fixture
def toy(tmp_path):
    cells = [
        "import os\nfrom IPython.display import display\nimport matplotlib.pyplot as plt",
        'ALPHA = 0.1   # try "0.5" # or more\nALPHA_MAX = 9\nNAME = "a # b"\nif ALPHA == 1:\n    pass',
        "%matplotlib inline\nplt.plot([0, ALPHA])\nplt.show()",
        "display({'text/plain': f'{ALPHA} {NAME}'}, raw=True)",
        "assert ALPHA < ALPHA_MAX\nos.environ['MAML_EDU_PRESET']",
    ]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c, id=f"c{i}") for i, c in enumerate(cells)])
    nbformat.write(nb, tmp_path / "toy.ipynb")
    return tmp_path / "toy.ipynb"


@pytest.mark.slow
def test_toy_runs_with_its_changes(toy):
    result = run_apart(toy, {"ALPHA": "0.25 * 2", "NAME": "'c'"})
    assert result.returncode == 0, report(result)
    assert "0.5 c" in result.stdout and "smoke" in result.stdout and "ran 5 code cells" in result.stdout


@pytest.mark.slow
def test_toy_reports_the_cell_that_fails(toy):
    result = run_apart(toy, {"ALPHA": "10"})
    assert result.returncode == 1
    assert "AssertionError" in result.stdout and "code cell 5 of 5 (id c4) with {'ALPHA': '10'}" in result.stdout


@pytest.mark.slow
def test_toy_reports_a_change_that_fits_nowhere(toy):
    result = run_apart(toy, {"BETA": "10"})
    assert result.returncode == 1 and "line that begins with 'BETA = '" in result.stdout


def test_changes_in_the_source(toy):
    nb = nbformat.read(toy, as_version=4)
    sources = dict(changed_sources(nb, {"ALPHA": "2", "NAME": '"c"', "cell:c2": "pass"}))
    assert sources["c1"].splitlines()[:3] == [
        'ALPHA = 2  # try "0.5" # or more',
        "ALPHA_MAX = 9",
        'NAME = "c"',
    ]
    assert sources["c2"] == "pass"


@pytest.mark.parametrize("changes", [{"BETA": "1"}, {"TWICE": "1"}, {"LONG": "1"}, {"cell:none": "1"}])
def test_changes_that_fit_nowhere(changes):
    cells = [nbformat.v4.new_code_cell(source) for source in ("TWICE = 1", "TWICE = 2", "LONG = [\n    1,\n]")]
    with pytest.raises(ValueError):
        changed_sources(nbformat.v4.new_notebook(cells=cells), changes)
