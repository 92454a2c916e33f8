"""Run a notebook's code cells with changed constants: by hand in this process, for tests in one of their own.

MAML_EDU_PRESET=smoke python tests/support/run_notebook.py notebooks/02_x.ipynb ALPHA=0.5 STEPS=3
python tests/support/run_notebook.py notebooks/02_x.ipynb "cell:1a2b3c4d=print('another cell')"
"""

import gc
import io
import multiprocessing
import os
import pkgutil
import re
import sys
import tempfile
import tokenize
import traceback
from pathlib import Path
from typing import NamedTuple

import matplotlib
import nbformat
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.backends.backend_agg import FigureCanvasAgg

import maml_edu

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
TIMEOUT = 300  # seconds for one run with preset smoke


def changed_sources(nb, changes):
    """(cell id, source) of the code cells, in order, after the changes; ValueError if one fits nowhere."""
    sources = {cell.id: cell.source for cell in nb.cells if cell.cell_type == "code"}
    for name, new in changes.items():
        if name.startswith("cell:"):
            cell_id = name.removeprefix("cell:")
            if cell_id not in sources:
                raise ValueError(f"there is no code cell with the id {cell_id}")
            sources[cell_id] = new
            continue
        line = re.compile(rf"^{re.escape(name)}[ \t]*=(?!=).*$", re.MULTILINE)
        hits = [(cell_id, hit) for cell_id, source in sources.items() for hit in line.finditer(source)]
        if len(hits) != 1:
            where = ", ".join(cell_id for cell_id, _ in hits) or "no cell"
            raise ValueError(f"expected one line that begins with '{name} = ', found {len(hits)} (in {where})")
        cell_id, hit = hits[0]
        source = sources[cell_id]
        sources[cell_id] = source[: hit.start()] + with_value(hit.group(), name, new) + source[hit.end() :]
    return list(sources.items())


def with_value(line, name, new):
    """`NAME = new`, with the comment of the old line."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(line).readline))
    except (tokenize.TokenError, SyntaxError) as error:
        raise ValueError(f"the value of {name} goes on past its line: replace the cell by its id") from error
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return "  ".join([f"{name} = {new}", *comments])


def run_cells(path, changes, until=None):
    """Run the code cells, up to the one with the id `until`, in one namespace, as a kernel would; 1 if one fails."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    sources = changed_sources(nbformat.read(path, as_version=4), changes)
    if until:
        sources = sources[: [cell_id for cell_id, _ in sources].index(until) + 1]

    class Shell(InteractiveShell):
        def enable_gui(self, gui=None):
            """`%matplotlib inline` asks for it; there is no window."""

    config = Config()
    config.HistoryManager.enabled = False  # no database shared between runs
    shell = Shell.instance(config=config)
    for number, (cell_id, source) in enumerate(sources, start=1):
        if not shell.run_cell(source, store_history=True).success:
            where = f"code cell {number} of {len(sources)} (id {cell_id})"
            print(f"\nFAILED in {where} with {changes or 'no change'}")
            return 1
    print(f"\nran {len(sources)} code cells")
    return 0


class Run(NamedTuple):
    returncode: int | None  # None: still running after TIMEOUT
    stdout: str


def run_apart(path, changes, until=None):
    """As `run_cells`, in a process of its own, in the notebook's folder, preset smoke, no window.

    The process is forked from a server that has imported the packages: importing torch takes longer than most cells.
    Pictures are drawn, but not laid out: to find room for the labels takes longer than the rest of the notebook.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        process = PROCESSES.Process(target=_run, args=(Path(path).resolve(), changes, until, output))
        process.start()
        process.join(TIMEOUT)
        if process.exitcode is None:
            process.kill()
            process.join()
            return Run(None, f"{output.read_text(encoding='utf-8')}\nstopped after {TIMEOUT} s")
        return Run(process.exitcode, output.read_text(encoding="utf-8"))


def _processes():
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    ours = [m.name for m in pkgutil.walk_packages(maml_edu.__path__, "maml_edu.") if not m.name.endswith("__main__")]
    # The last two are what torch imports at the first backward call and at the first step of an optimizer.
    late = ["torch.fx.experimental.symbolic_shapes", "torch._dynamo"]
    context.set_forkserver_preload(["matplotlib.pyplot", "IPython", *ours, *late])
    return context


PROCESSES = _processes()


def _draw_only(canvas, target, **options):
    """In place of `print_figure`: every artist is drawn, once, where it stands."""
    canvas.figure.set_layout_engine("none")
    FigureCanvasAgg(canvas.figure).print_png(target)


def _run(path, changes, until, output):
    gc.freeze()  # what the server has imported stays; a fifth of the time would go into looking for garbage in it
    os.environ |= {"MAML_EDU_PRESET": "smoke", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    matplotlib.use("Agg")
    FigureCanvasBase.print_figure = _draw_only
    os.chdir(path.parent)
    with open(output, "w", encoding="utf-8") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdin, sys.stdout, sys.stderr = io.StringIO(), file, file
        try:
            returncode = run_cells(path, changes, until)
        except Exception:  # a change that fits nowhere, say
            traceback.print_exc()
            returncode = 1
    os._exit(returncode)  # not through the handlers of a server that goes on


def parse(argument):
    """`NAME=source` or `cell:ID=source`."""
    name, equals, source = argument.partition("=")
    if not equals:
        raise SystemExit(f"expected NAME=source or cell:ID=source, got {argument!r}")
    return name.strip(), source


def report(result):
    """The end of what a run printed, without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)[-6000:]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    notebook, given = Path(sys.argv[1]).resolve(), dict(map(parse, sys.argv[2:]))
    os.chdir(notebook.parent)  # where its kernel would start
    sys.exit(run_cells(notebook, given))
