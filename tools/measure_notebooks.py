#!/usr/bin/env python3
"""What a notebook costs the machine it runs on: peak memory and CPU seconds of its kernel, preset quick.

    python tools/measure_notebooks.py                          every notebook, one after the other
    python tools/measure_notebooks.py notebooks/06_*.ipynb     these; the other rows stay as they are

The numbers go to benchmarks/notebooks.json; `python tools/guide_tables.py` puts them into the guide
for teachers. Peak memory does not depend on what else the machine does, and CPU seconds by a few tenths. Linux only.
"""

import argparse
import json
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import nbformat
from refresh_notebooks import NOTEBOOKS, prepare, run

STORED = Path(__file__).resolve().parent.parent / "benchmarks" / "notebooks.json"
IDLE = "imports only"


def measure(name):
    """Run one notebook in a kernel; a process of its own, since the peak is that of all its children so far."""
    import resource

    if name == IDLE:
        imports = "from maml_edu import check, claim, train\nfrom maml_edu.figures import style"
        cells = [imports, "print(open('/proc/self/status').read())"]
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    else:
        nb = nbformat.read(NOTEBOOKS / name, as_version=4)
    run(nb, NOTEBOOKS, timeout=600)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = {"peak_mib": round(used.ru_maxrss / 2**10), "cpu_seconds": round(used.ru_utime + used.ru_stime, 1)}
    if name == IDLE:  # pages of library files: kernels of one machine have them in common
        found["shared_mib"] = round(int(re.search(r"RssFile:\s*(\d+) kB", nb.cells[1].outputs[0].text)[1]) / 2**10)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of notebooks/")
    names = [path.name for path in parser.parse_args().notebooks] or [p.name for p in NOTEBOOKS.glob("*.ipynb")]
    prepare()

    from maml_edu.experiments.results import provenance

    stored = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else {"kernels": {}}
    for name in [IDLE, *sorted(names)]:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            stored["kernels"][name] = pool.submit(measure, name).result()
        print(f"{name}: {stored['kernels'][name]}", flush=True)
    where = provenance(0, 0.0, command="python tools/measure_notebooks.py")
    where = {key: where[key] for key in ("hardware", "versions", "command", "date")}
    where["versions"] |= {name: version(name) for name in ("ipykernel", "matplotlib", "numpy")}
    ordered = {name: stored["kernels"][name] for name in sorted(stored["kernels"], key=lambda n: (n != IDLE, n))}
    text = json.dumps({"preset": "quick", "kernels": ordered, "provenance": where}, indent=1, ensure_ascii=False)
    STORED.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
