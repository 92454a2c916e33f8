"""How one exact meta-gradient of this package grows: with tasks, inner steps and width, eager, compiled and in a loop.

    python benchmarks/scaling.py

Writes scaling.json, from which notebook 14 draws. One thread. Within a group the calls take turns of a few hundredths
of a second, so that a busy machine slows all of them; the median call counts. Memory and operations are counted, not
timed (`maml_edu.engine.counters`), and come out the same everywhere. Times are the processor's: on an idle machine the
clock shows the same. Takes about two minutes, half of it compiling.
"""

import json
import time
from pathlib import Path

import numpy as np
import torch
from contestants import CONTESTANTS, pictures, sine

from maml_edu.electives.gradient_checkpointing import maml_checkpointed
from maml_edu.engine.compilation import compiled
from maml_edu.engine.counters import count_operations, peak_bytes
from maml_edu.experiments.results import provenance
from maml_edu.meta_gradient import fomaml, maml
from maml_edu.reference import autograd_maml

HERE, STARTED = Path(__file__).parent, time.perf_counter()
TURN, ROUNDS = 0.04, 9  # seconds that a call is repeated before the next one's turn; turns of each
TASKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STEPS = (1, 2, 5, 10, 20)
HIDDEN = (10, 20, 40, 80, 160, 320)
FILTERS = (8, 16, 32, 64)
MEMORY_STEPS = (1, 4, 9, 16, 25, 36)
COMPILED_TASKS, COMPILED_HIDDEN = (1, 16, 256), (160,)


def main():
    torch.set_num_threads(1)
    rows = []
    rows += timed("tasks", {t: (sine(tasks=t), 1) for t in TASKS}, COMPILED_TASKS, loop_up_to=64)
    rows += timed("inner steps", {k: (sine(), k) for k in STEPS}, (1,))
    rows += timed("hidden units", {h: (sine(hidden=h), 1) for h in HIDDEN}, COMPILED_HIDDEN)
    rows += timed("filters", {f: (pictures(tasks=8, filters=f), 1) for f in FILTERS}, ())
    found = {
        "settings": {
            "sine": {"tasks": 25, "shots": 10, "hidden": 40, "steps": 1},
            "conv4": {"tasks": 8, "ways": 5, "shots": 1, "steps": 1},
        },
        "time": rows,
        "memory": memory(),
        "launches": launches(),
        "machine": machine(),
        "provenance": provenance(0, time.perf_counter() - STARTED),
    }
    (HERE / "scaling.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {HERE / 'scaling.json'} after {time.perf_counter() - STARTED:.0f} s")


def timed(what, problems, with_compiled, loop_up_to=0):
    """A row per problem and way to compute it: milliseconds, how many calls, operations of the eager way."""
    rows, calls = [], []
    for value, (problem, steps) in problems.items():
        ways = {"maml": maml, "fomaml": fomaml}
        if value in with_compiled:
            ways["maml, compiled"] = compiled(maml)
        for way, method in ways.items():
            calls.append((_call(method, problem, steps), []))
            calls[-1][0]()  # compiles
            rows.append({"what": what, "value": value, "way": way})
            if way in ("maml", "fomaml"):
                rows[-1]["operations"] = count_operations(calls[-1][0])
        if value <= loop_up_to:
            calls.append((CONTESTANTS["loop over tasks"](problem, steps, False), []))
            rows.append({"what": what, "value": value, "way": "loop over tasks"})
    for _ in range(ROUNDS):
        for call, times in calls:
            turn = []
            call()  # what the others left in the caches is not this one's fault
            while sum(turn) < TURN:
                started = time.process_time()
                call()
                turn.append(time.process_time() - started)
            times += turn
    for row, (_, times) in zip(rows, calls):
        row |= {"ms": 1e3 * float(np.median(times)), "runs": len(times)}
    print(f"{what}: {time.perf_counter() - STARTED:.0f} s so far")
    return rows


def _call(method, problem, steps):
    return lambda: method(problem.loss, problem.model.theta, problem.batch, problem.alpha, steps)


def memory():
    """The most bytes alive at one time, by K, for two networks: counted."""
    rows = []
    for name, problem in (("sine", sine()), ("conv4", pictures(tasks=4, filters=16))):
        for method in (maml, maml_checkpointed, autograd_maml):
            for steps in MEMORY_STEPS:
                peak = peak_bytes(_call(method, problem, steps))
                rows.append({"network": name, "way": method.__name__, "K": steps, "bytes": peak})
    return rows


def launches():
    """Operations of the eager way against kernels after fusion, sine, K = 1."""
    from torch._inductor import metrics

    problem = sine(tasks=24)  # a shape that nothing here has compiled yet
    metrics.reset()
    compiled(maml)(problem.loss, problem.model.theta, problem.batch, problem.alpha, 1)
    eager = count_operations(_call(maml, problem, 1))
    return {"eager operations": eager, "generated kernels": metrics.generated_kernel_count}


def machine():
    """What this processor reaches on one thread: a large matrix product, and the smallest operation there is."""
    a, b, c = torch.randn(1024, 1024), torch.randn(1024, 1024), torch.zeros(1)
    calls = (((lambda: a @ b), 3), ((lambda: c + c), 3000))
    times = ([], [])
    for _ in range(ROUNDS):
        for (call, repeats), taken in zip(calls, times):
            started = time.process_time()
            for _ in range(repeats):
                call()
            taken.append((time.process_time() - started) / repeats)
    product, smallest = (float(np.median(t)) for t in times)
    return {"matmul GFLOP/s": 2 * 1024**3 / product / 1e9, "smallest operation, s": smallest}


if __name__ == "__main__":
    main()
