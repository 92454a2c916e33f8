"""Surroundings of every test and every notebook kernel: kernels inherit the environment set here."""

import gc
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
# In the order in which they start: what runs longest first, and last what takes seconds a piece and fills the gaps.
ORDER = ("notebooks/08_", "notebooks/07_", "notebooks/05_", "notebooks/", "tests/", "tests/test_notebook_changes.py")
QUICK_NOTEBOOKS = ("00_", "02_")  # all others are slow


def prepare_environment(environ=os.environ):
    """Set what stored numbers depend on. Also called by tools/refresh_notebooks.py, so that both agree."""
    environ["OMP_NUM_THREADS"] = "1"  # two kernels with spinning threads on two cores all but stop
    environ.pop("MPLBACKEND", None)  # "Agg" here would take the inline figures out of the notebooks
    if environ.get("MAML_EDU_TEST_DEVICE") != "cuda":
        environ["CUDA_VISIBLE_DEVICES"] = ""  # stored numbers are CPU numbers
    environ.setdefault("MAML_EDU_PRESET", "quick")
    environ["MAML_EDU_PROGRESS"] = ""  # checks leave no file in notebooks/, and find none there
    if environ.get("MAML_EDU_DATA"):
        environ["MAML_EDU_DATA"] = str(Path(environ["MAML_EDU_DATA"]).expanduser().resolve())


def warm_font_cache():
    """Build matplotlib's font cache: a kernel that builds it says so on stderr, and its notebook fails."""
    import matplotlib.font_manager  # noqa: F401  (importing it builds the cache when there is none)


prepare_environment()
warm_font_cache()


def pytest_configure(config):
    import matplotlib

    matplotlib.use("Agg")  # this process only, not the kernels: tests need no window
    sanitize = getattr(config.option, "nbval_sanitize_with", None)
    if sanitize:
        config.option.nbval_sanitize_with = str(ROOT / sanitize)  # pytest may be started in any folder


def pytest_terminal_summary(terminalreporter):
    if not os.environ.get("MAML_EDU_DATA"):
        terminalreporter.section("Omniglot")
        terminalreporter.write_line(
            "MAML_EDU_DATA is not set: the tests of the real archives were skipped, and the notebooks downloaded "
            "Omniglot or drew glyphs. Set it to the folder that holds images_background and images_evaluation."
        )


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread():
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Mark the slow notebooks and whatever reads all of Omniglot, and sort by ORDER, stably."""
    for item in items:
        slow_notebook = item.nodeid.startswith("notebooks/") and not item.path.name.startswith(QUICK_NOTEBOOKS)
        if slow_notebook or "real" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)

    def rank(item):
        fits = [prefix for prefix in ORDER if item.nodeid.startswith(prefix)]
        return ORDER.index(max(fits, key=len)) if fits else len(ORDER)

    items.sort(key=rank)


def pytest_collection_finish():
    """What is imported by now stays; a tenth of the time would go into looking for garbage in it."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """As --dist=loadscope, but every test that runs a changed notebook may go to any worker."""
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            if nodeid.startswith("tests/test_notebook_changes.py"):
                return nodeid
            return super()._split_scope(nodeid)

    return Scheduling(config, log)
