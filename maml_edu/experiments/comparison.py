"""One table for several families: the same episodes, network, optimiser and number of tasks for each.

    python -m maml_edu.experiments.comparison --method prototypes --tasks 32000 --out runs/prototypes

trains on Omniglot, Finn split, scores 600 test tasks once, then looks at validation tasks of other kinds (more shots,
more ways, more inner steps, ink and paper exchanged), and writes result.json, in the form of `results.result`.

    python -m maml_edu.experiments.comparison --dataset sine --tasks 500000 --out runs/sine_process

trains a conditional neural process on sines and writes final.pt; each meta-batch has a number of support points drawn
from 1 to 10, or always the same with --points.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from maml_edu.data.episodes import Episodes, characters, split
from maml_edu.data.sine import SineTasks
from maml_edu.electives.conditioned_starts import ConditionedModel, adapt_from, everywhere, maml_from
from maml_edu.electives.hypernetworks import hypernetwork
from maml_edu.electives.neural_processes import gaussian_nll, neural_process, neural_process_classifier
from maml_edu.electives.prototypes import prototypical
from maml_edu.engine.checkpoint_files import save_checkpoint
from maml_edu.evaluation import evaluate, mean_ci95
from maml_edu.experiments.results import provenance, result, write_result
from maml_edu.experiments.runner import keep_freed_memory, plain_rates, thinned_curve
from maml_edu.meta_gradient import adapt, maml
from maml_edu.models import conv4, cross_entropy
from maml_edu.training import train

# name: (inner steps in training and at test, works with any number of ways)
METHODS = {
    "maml": (1, False),
    "prototypes": (0, True),
    "protomaml": (1, True),
    "hypernetwork": (1, True),
    "process": (0, False),
}
TASKS, LR, ALPHA, ALPHA_LR = 8, 5e-3, 0.4, 1e-2  # meta-batch, Adam on θ, where α starts, Adam on α
OTHER_ALPHA = 0.1  # for methods that were trained without inner steps, where a study takes some


def family(method: str, ways: int, filters: int = 32, generator: torch.Generator | None = None) -> ConditionedModel:
    """A method of the table, on conv4 with `filters` filters. Raises ValueError for an unknown name."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    network = conv4(ways, filters, generator=generator)
    if method == "maml":
        return ConditionedModel(network, everywhere)
    if method == "hypernetwork":
        return hypernetwork(network, ways, generator=generator)
    if method == "process":
        return neural_process_classifier(network, ways, generator=generator)
    return prototypical(network, ways)


def meta_gradient_of(method: str, start: Callable) -> Callable:
    """What `train` takes: `maml` itself for MAML, which keeps its last graph; `maml_from(start)` for the others."""
    return maml if method == "maml" else maml_from(start)


def first_rates(found: ConditionedModel, example, steps: int, alpha: float = ALPHA):
    """α to start from: one rate per tensor of φ_0 and step (φ_0 has other names than θ); a number where K = 0."""
    if steps == 0:
        return 0.0
    with torch.no_grad():
        names = found.start(found.model.theta, example.support_x, example.support_y)
    return [dict.fromkeys(names, alpha) for _ in range(steps)]


def studies(method: str, theta, alpha, ways: int, shots: int, filters: int, validation, tasks: int, seed: int) -> dict:
    """Accuracies [mean, half width] on validation tasks of kinds that were not trained on; see `run`.

    shots: {k: one per inner step 0 … 10}; ways: {n: at the trained K}, None where the method cannot; inverted: ink and
    paper exchanged, one per inner step. Steps beyond the trained ones repeat the last α; methods that were trained
    without any take OTHER_ALPHA.
    """
    steps, any_ways = METHODS[method]
    rates = alpha if steps else OTHER_ALPHA

    def score(ways, shots, steps, invert=False):
        episodes = Episodes(validation, ways, shots, 1)
        found = family(method, ways, filters)
        how = adapt if method == "maml" else adapt_from(found.start)

        def sample(count, generator):
            batch = episodes.sample(count, generator)
            flipped = dict(support_x=1 - batch.support_x, query_x=1 - batch.query_x)
            return batch._replace(**flipped) if invert else batch

        scores = evaluate(
            found.model._replace(theta=theta),
            cross_entropy(found.model.apply),
            sample,
            rates,
            steps,
            tasks=tasks,
            metric="accuracy",
            generator=torch.Generator().manual_seed(seed + 5),
            adapt=how,
        )
        return [[round(value, 5) for value in mean_ci95(s.values)] for s in scores]

    return {
        "tasks": tasks,
        "alpha_without_trained_steps": None if steps else OTHER_ALPHA,
        "shots": {str(k): score(ways, k, 10) for k in (shots, 5, 10)},
        "ways": {str(n): score(n, shots, steps)[-1] if any_ways or n == ways else None for n in (ways, 10, 20)},
        "inverted": {str(k): score(ways, k, 10, invert=True) for k in (shots, 5)},
    }


def run(method: str, tasks: int, seed: int, out: Path, dataset: str = "omniglot", test_tasks: int = 600, command=""):
    """Train, score the test tasks once, look at the studies, write out/result.json and final.pt; resumes by itself."""
    keep_freed_memory()
    ways, shots, filters, (steps, _) = 5, 1, 32, METHODS[method]
    iterations = tasks // TASKS
    training, validation, test = split(characters(dataset), "finn")
    episodes = [Episodes(part, ways, shots, 1) for part in (training, test)]
    found = family(method, ways, filters, torch.Generator().manual_seed(seed))
    loss = cross_entropy(found.model.apply)
    rates = first_rates(found, episodes[0].sample(1, torch.Generator().manual_seed(0)), steps)
    out.mkdir(parents=True, exist_ok=True)
    cpu = time.process_time()
    trained = train(
        found.model,
        loss,
        episodes[0].sample,
        meta_gradient_of(method, found.start),
        iterations=iterations,
        tasks=TASKS,
        alpha=rates,
        steps=steps,
        learn_alpha=steps > 0,
        alpha_lr=ALPHA_LR,
        lr=LR,
        schedule="cosine",
        generator=torch.Generator().manual_seed(seed + 1),
        progress=method,
        checkpoint=out / "checkpoint.pt",
        resume=(out / "checkpoint.pt").exists(),
        about={"seed": seed},
    )
    cpu = time.process_time() - cpu
    if len(trained.history["query_loss"]) < iterations:
        print("stopped early; the same command continues")
        return 1
    model = found.model._replace(theta=trained.theta)
    how = adapt if method == "maml" else adapt_from(found.start)
    scores, one_query = (
        evaluate(
            model,
            loss,
            episodes[1].sample,
            trained.alpha,
            steps,
            tasks=test_tasks,
            metric="accuracy",
            statistics=statistics,
            generator=torch.Generator().manual_seed(seed + 2),
            adapt=how,
        )
        for statistics in ("transductive", "one-query")
    )
    protocol = {
        "split": "finn",
        "ways": ways,
        "rotations": True,
        "resize": "28×28, Lanczos on grey levels" if dataset == "omniglot" else "drawn at 28×28",
        "loss": "mean cross-entropy",
        "statistics": "transductive",
        "filters": filters,
        "shots": shots,
        "test_shots": shots,
        "queries": 1,
        "test_queries": 1,
        "tasks": test_tasks,
        "meta_batch": TASKS,
        "iterations": iterations,
        "outer": f"Adam, lr {LR:g}, cosine",
        "alpha_learned": steps > 0,
        **({"alpha_start": ALPHA, "alpha_lr": ALPHA_LR} if steps else {}),
        "inner_steps_train": steps,
        "inner_steps": steps,
        "alpha": plain_rates(trained.alpha) if steps else None,
    }
    more = {
        "metric": "accuracy",
        "training_cpu_seconds": round(cpu, 1),
        "parameters": sum(p.numel() for p in model.theta.values()),
        "one_query": list(mean_ci95(one_query[-1].values)),
        "validation_studies": studies(
            method, trained.theta, trained.alpha, ways, shots, filters, validation, min(300, test_tasks), seed
        ),
        "curve": thinned_curve(trained.history),
    }
    where = provenance(
        seed, float(trained.history["seconds"]), command=f"python -m maml_edu.experiments.comparison {command}"
    )
    name = f"{dataset} {ways}-way {shots}-shot"
    write_result(out / "result.json", result(name, method, protocol, scores, where, **more))
    save_checkpoint(out / "final.pt", trained, experiment=name, method=method, protocol=protocol)
    print(f"accuracy {scores[-1].mean:.4f} ± {scores[-1].half_width:.4f}; wrote {out / 'result.json'}")
    return 0


def run_sine(tasks: int, seed: int, out: Path, points: int | None = None, command: str = "") -> int:
    """Train a conditional neural process on sines; final.pt says with what settings. points: None draws 1 to 10."""
    found = neural_process(generator=torch.Generator().manual_seed(seed))
    meta_batch, family = 25, SineTasks()
    out.mkdir(parents=True, exist_ok=True)

    def sample(count, generator):
        shots = points or int(torch.randint(1, 11, (), generator=generator))
        return family.sample(count, shots, 10, generator=generator)

    trained = train(
        found.model,
        gaussian_nll(found.model.apply),
        sample,
        maml_from(found.start),
        iterations=tasks // meta_batch,
        tasks=meta_batch,
        alpha=0.0,
        steps=0,
        lr=2e-3,
        schedule="cosine",
        generator=torch.Generator().manual_seed(seed + 1),
        progress="process on sines",
        checkpoint=out / "checkpoint.pt",
        resume=(out / "checkpoint.pt").exists(),
        about={"seed": seed},
    )
    if len(trained.history["query_loss"]) < tasks // meta_batch:
        print("stopped early; the same command continues")
        return 1
    command = f"python -m maml_edu.experiments.comparison {command}"
    where = provenance(seed, float(trained.history["seconds"]), command=command)
    where = json.loads(json.dumps(where))  # plain strings and numbers: a checkpoint is read with weights_only=True
    protocol = {
        "shots": points or "1 to 10",
        "meta_batch": meta_batch,
        "iterations": tasks // meta_batch,
        "outer": "Adam, lr 0.002, cosine",
    }
    save_checkpoint(out / "final.pt", trained, method="process", protocol=protocol, provenance=where)
    print(f"query loss at the end {trained.history['query_loss'][-100:].mean():.3f} nats; wrote {out / 'final.pt'}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m maml_edu.experiments.comparison", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--method", choices=METHODS, default="process")
    parser.add_argument("--tasks", type=int, default=32_000, help=f"training tasks in all, {TASKS} in a meta-batch")
    parser.add_argument("--test-tasks", type=int, default=600)
    parser.add_argument("--dataset", choices=("omniglot", "glyphs", "sine"), default="omniglot")
    parser.add_argument("--points", type=int, help="support points of --dataset sine (default: drawn from 1 to 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for result.json; an unfinished run continues")
    arguments = sys.argv[1:] if arguments is None else arguments
    given = parser.parse_args(arguments)
    if given.dataset == "sine":
        if given.method != "process" or given.tasks < 25:
            parser.error("--dataset sine trains --method process, on at least one meta-batch of 25 tasks")
        torch.set_num_threads(1)
        return run_sine(given.tasks, given.seed, given.out, given.points, shlex.join(arguments))
    if given.tasks < TASKS:
        parser.error(f"--tasks {given.tasks}: at least one meta-batch of {TASKS}")
    torch.set_num_threads(1)
    return run(given.method, given.tasks, given.seed, given.out, given.dataset, given.test_tasks, shlex.join(arguments))


if __name__ == "__main__":
    sys.exit(main())
