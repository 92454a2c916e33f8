"""What is installed from the wheel is the package and its checkpoints, and runs without the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = sorted(p.stem for p in (ROOT / "maml_edu" / "checkpoints").glob("*.pt"))

LOAD_EVERY_CHECKPOINT = """
import sys
from pathlib import Path

import maml_edu
from maml_edu.engine.checkpoint_files import load_checkpoint

assert Path(maml_edu.__file__).is_relative_to(sys.argv[1]), maml_edu.__file__
for name in sys.argv[2:]:
    trained, settings = load_checkpoint(name)
    assert trained.theta and all(p.isfinite().all() for p in trained.theta.values()), name
    assert settings["method"] and settings["protocol"], name
try:
    load_checkpoint("nothing")
except FileNotFoundError as error:
    assert str(error).endswith("shipped with the package: " + (", ".join(sys.argv[2:]) or "none")), error
else:
    raise AssertionError("a checkpoint called nothing was found")
"""


def python(*arguments, **options):
    """This Python, without the checkout on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= options.pop("environment", {})
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that no build folder appears in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "maml_edu", source / "maml_edu", ignore=shutil.ignore_patterns("__pycache__"))
    try:
        ready = int(version("setuptools").split(".")[0]) >= 77
    except PackageNotFoundError:
        ready = False
    here = ["--no-build-isolation"] if ready else []  # else pip fetches setuptools
    python("-m", "pip", "wheel", "--quiet", "--no-deps", *here, "--wheel-dir", out, source)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp("installed")
    python("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel)
    return target


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = ROOT / "maml_edu"
    expected = [p for kind in ("*.py", "checkpoints/*.pt", "py.typed") for p in package.rglob(kind)]
    assert files == {p.relative_to(ROOT).as_posix() for p in expected}


def test_every_shipped_checkpoint_loads_from_another_folder(installed, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(LOAD_EVERY_CHECKPOINT, encoding="utf-8")
    python(program, installed, *CHECKPOINTS, cwd=tmp_path, environment={"PYTHONPATH": str(installed)})


def test_the_installed_command_line_runs(installed, tmp_path):
    out = python("-m", "maml_edu", "train", "--help", cwd=tmp_path, environment={"PYTHONPATH": str(installed)})
    assert "--dataset" in out and "--preset" in out
