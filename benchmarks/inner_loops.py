"""Trains the sine networks that notebook 10 compares, one inner loop or one remedy each. Run by hand, about 4 minutes.

    python benchmarks/inner_loops.py               # all of them
    python benchmarks/inner_loops.py maml_k5       # one

Every run of a group has the same tasks, start, number of iterations and outer Adam; results, with the curve of the
meta-batch loss, go to notebooks/results/sine_10shot_<run>.json. α of momentum (0.001, 0.003, 0.01) and α and ε of Adam
(0.01, 0.03; 1e-4, 1e-2, 1) were chosen by the loss after 300 outer iterations.
"""

import sys
import time
import warnings
from functools import partial
from pathlib import Path

import torch

from maml_edu.data.sine import SineTasks
from maml_edu.electives.inner_optimizers import (
    adam_adapt,
    adam_maml,
    momentum_adapt,
    momentum_maml,
    rate_per_parameter,
    truncated_maml,
)
from maml_edu.evaluation import evaluate
from maml_edu.experiments.results import provenance, result, write_result
from maml_edu.meta_gradient import fomaml
from maml_edu.models import mlp, mse
from maml_edu.step_sizes import map_alpha
from maml_edu.training import train

RESULTS = Path(__file__).parents[1] / "notebooks" / "results"
SINES = SineTasks()
EVERY = {5: 30, 10: 10, 20: 10}  # iterations averaged to one point of the stored curve, by inner steps
TEST_TASKS = 600

# Comparison: five inner steps. Clipping keeps every way to adapt from being thrown back by one bad meta-batch.
K5 = dict(steps=5, alpha=0.01, iterations=1500, lr=3e-3, schedule="cosine", clip=10.0)
# Trouble and remedies: ten steps of a size that is too large for this network.
K10 = dict(steps=10, alpha=0.03, iterations=500, lr=3e-3)

adam_1 = partial(adam_maml, epsilon=1.0)


def runs():
    """name -> (settings of `train`, another way to adapt than plain steps or None)."""
    theta = mlp().theta
    per_parameter = dict(alpha=rate_per_parameter(theta, 0.01), learn_alpha=True, alpha_lr=1e-3)
    return {
        "maml_k1": (K5 | dict(steps=1), None),
        "metasgd_k1": (K5 | per_parameter | dict(steps=1), None),
        "maml_k5": (K5, None),
        "fomaml_k5": (K5 | dict(method=fomaml), None),
        "metasgd_k5": (K5 | per_parameter, None),
        "perstep_k5": (K5 | dict(learn_alpha=True, alpha_lr=1e-3), None),
        "multistep_k5": (K5 | dict(multi_step=750), None),
        "momentum_k5": (K5 | dict(method=momentum_maml, alpha=0.003), momentum_adapt),
        "adam_k5": (K5 | dict(method=adam_1, alpha=0.03), partial(adam_adapt, epsilon=1.0)),
        "maml_k10": (K10, None),
        "fomaml_k10": (K10 | dict(method=fomaml), None),
        "truncated_k10": (K10 | dict(method=partial(truncated_maml, keep=3)), None),
        "clip_k10": (K10 | dict(clip=1.0), None),
        "outer_k10": (K10 | dict(lr=1e-3), None),
        "multistep_k10": (K10 | dict(multi_step=400), None),
        "perstep_k10": (K10 | dict(learn_alpha=True, alpha_lr=1e-3), None),
        "smaller_k10": (K10 | dict(alpha=0.01), None),
        "smaller_k20": (K10 | dict(alpha=0.015, steps=20), None),
    }


def main(name):
    settings, adapt = runs()[name]
    model = mlp(generator=torch.Generator().manual_seed(0))
    loss, steps = mse(model.apply), settings["steps"]

    def tasks_of(queries):
        return lambda tasks, generator: SINES.sample(tasks, 10, queries, generator=generator)

    started = time.monotonic()
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        trained = train(model, loss, tasks_of(10), tasks=25, progress=None, **settings)
    curve = trained.history["query_loss"]
    scores = evaluate(
        model._replace(theta=trained.theta),
        loss,
        tasks_of(100),
        trained.alpha,
        steps,
        TEST_TASKS,
        generator=torch.Generator().manual_seed(1),
        **({} if adapt is None else {"adapt": adapt}),
    )
    every, learned = EVERY.get(steps, 30), settings.get("learn_alpha", False)
    protocol = {
        "model": "mlp 1-40-40-1 relu",
        "init": "fan-in",
        "shots": 10,
        "test_shots": 10,
        "test_queries": 100,
        "tasks": TEST_TASKS,
        "meta_batch": 25,
        "iterations": settings["iterations"],
        "outer": f"Adam, lr {settings['lr']}, {settings.get('schedule', 'constant')}, clip {settings.get('clip')}",
        "alpha": 0.01 if isinstance(settings["alpha"], dict) else settings["alpha"],
        "alpha_learned": learned,
        "multi_step": settings.get("multi_step", 0),
        "inner_steps_train": steps,
        "inner_steps": steps,
    }
    more = {
        "metric": "loss",
        "curve": {"every": every, "query_loss": [round(x.mean().item(), 4) for x in curve.split(every)]},
        "stopped_early": bool(raised),
    }
    protocol |= {"momentum_k5": {"momentum": 0.9}, "adam_k5": {"epsilon": 1.0}}.get(name, {})
    protocol |= {"truncated_k10": {"pulled_back": 3}}.get(name, {})
    if learned and isinstance(trained.alpha, list):
        more["learned_alpha"] = map_alpha(lambda rate: round(rate.item(), 6), trained.alpha)
    record = provenance(0, time.monotonic() - started, command=f"python benchmarks/inner_loops.py {name}")
    method = name.split("_")[0]
    write_result(RESULTS / f"sine_10shot_{name}.json", result("sine 10-shot", method, protocol, scores, record, **more))
    end = scores[-1]
    print(f"{name:16} median {end.median:.3f} mean {end.mean} ± {end.half_width} diverged {end.diverged}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for run in sys.argv[1:] or runs():
        main(run)
