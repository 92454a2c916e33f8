#!/usr/bin/env python3
"""Run notebooks from top to bottom and store them in their one canonical form.

    python tools/refresh_notebooks.py                          every notebook: run, normalise, write
    python tools/refresh_notebooks.py notebooks/03_*.ipynb     only these
    python tools/refresh_notebooks.py --no-run …               normalise only, after an edit of the text
    python tools/refresh_notebooks.py --check …                write nothing; exit status 1 if not in order

Canonical means: nbformat 4.5, unique cell ids, execution counts 1..n, outputs as a terminal would show them,
no timings, no widget state, no interpreter version, one newline at the end. Notebooks run in the same
surroundings as the tests, since the tests compare what is stored.
"""

import argparse
import os
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
KEPT_CELL_METADATA = ("jupyter", "tags")
CELL_LIMIT, NOTEBOOK_LIMIT = (
    200 * 1024,
    1500 * 1024,
)  # bytes; GitHub shows nothing of a notebook far above this


def read(path):
    return nbformat.reads(Path(path).read_text(encoding="utf-8"), as_version=4)


def written(nb):
    """The text of the file that holds this notebook."""
    return nbformat.writes(nb).rstrip("\n") + "\n"


def canonical(nb):
    """A copy of the notebook in canonical form."""
    nb = nbformat.from_dict(nb)
    nb.nbformat, nb.nbformat_minor = 4, 5
    nb.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC, "language_info": {"name": "python"}})
    taken, count = set(), 0
    for position, cell in enumerate(nb.cells):
        cell["id"] = _free_id(cell.get("id") or f"cell-{position:02d}", taken)
        cell.metadata = nbformat.from_dict({k: cell.metadata[k] for k in KEPT_CELL_METADATA if k in cell.metadata})
        if cell.cell_type == "code":
            count += 1
            has_run = cell.execution_count is not None or bool(cell.outputs)
            cell.execution_count = count if has_run else None  # nbval rejects outputs without a count
            cell.outputs = _canonical_outputs(cell.outputs, cell.execution_count)
    return nb


def _free_id(wanted, taken):
    number, candidate = 1, wanted
    while candidate in taken:
        number += 1
        candidate = f"{wanted}-{number}"
    taken.add(candidate)
    return candidate


def _canonical_outputs(outputs, count):
    kept = []
    for output in outputs:
        if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
            continue
        if output.output_type == "execute_result":
            output.execution_count = count
        # Without its state a stored widget shows an error; the picture beside it in the bundle shows instead.
        if len(output.get("data", {})) > 1:
            output.data.pop(WIDGET_VIEW, None)
        kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = re.sub(r"(?m)^.*\r(?=[^\n])", "", output.text)  # a progress bar: its last state only
    return kept


def complaints(nb):
    """What is wrong with stored outputs that normalising cannot mend."""
    found = []
    try:
        nbformat.validate(nb)
    except nbformat.ValidationError as error:
        found.append(f"invalid notebook: {str(error).splitlines()[0]}")
    if (size := len(written(nb).encode())) > NOTEBOOK_LIMIT:
        found.append(f"the notebook has {size // 1024} KB, limit {NOTEBOOK_LIMIT // 1024}")
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        size = len(nbformat.writes(nbformat.v4.new_notebook(cells=[cell])).encode())
        if size > CELL_LIMIT:
            found.append(f"cell {cell.id}: {size // 1024} KB, limit {CELL_LIMIT // 1024}")
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"cell {cell.id}: stored error {output.ename}: {output.evalue}")
            elif output.output_type == "stream" and output.name == "stderr":
                found.append(f"cell {cell.id}: stored stderr {output.text[:80]!r}")
            elif WIDGET_VIEW in output.get("data", {}) and "image/png" not in output.data:
                found.append(f"cell {cell.id}: a widget without a picture for those who only read")
    return found


def run(nb, folder, timeout):
    """Execute the notebook in place with the kernel of this environment, in its own folder."""
    from nbclient import NotebookClient

    NotebookClient(
        nb,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(folder)}},
    ).execute()


def prepare():
    """The surroundings of the tests; and kernels of this environment before those of the user's folder."""
    sys.path.insert(0, str(ROOT))
    from conftest import prepare_environment, warm_font_cache

    prepare_environment()
    warm_font_cache()
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--no-run", action="store_true", help="normalise without running")
    mode.add_argument("--check", action="store_true", help="write nothing, report what is not in order")
    parser.add_argument("--timeout", type=int, default=600, help="seconds per cell (default 600)")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of notebooks/")
    options = parser.parse_args()

    from nbclient.exceptions import CellExecutionError

    paths = options.notebooks or sorted(NOTEBOOKS.glob("*.ipynb"))
    will_run = not (options.check or options.no_run)
    if will_run:
        prepare()
    failed = False
    for path in paths:
        before = path.read_text(encoding="utf-8")
        nb = read(path)
        if will_run:
            try:
                run(nb, path.resolve().parent, options.timeout)
            except CellExecutionError as error:
                print(f"{path}: not written, a cell failed\n{error}")
                failed = True
                continue
        notes = complaints(nb)
        after = written(canonical(nb))
        if options.check and after != before:
            notes.insert(0, "not in canonical form: python tools/refresh_notebooks.py --no-run mends it")
        if not options.check and after != before:
            path.write_text(after, encoding="utf-8")
        for note in notes:
            print(f"{path}: {note}")
        failed |= bool(notes)
        if not notes:
            print(f"{path}: in order" if after == before else f"{path}: written")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
