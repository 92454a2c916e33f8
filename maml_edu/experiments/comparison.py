"""One table for several methods: the same episodes, network, optimiser and number of tasks for each.

    python -m maml_edu compare --methods maml prototypes --out runs/table

trains each on 5-way 1-shot characters, Finn split, scores 600 test tasks once, then looks at validation tasks of other
kinds (more shots, more ways, more inner steps, ink and paper exchanged). Every method gets a folder of its own, with a
result.json in the form of `results.result`.
"""

import time
from collections.abc import Mapping
from dataclasses import replace

import torch

from maml_edu.data.episodes import Episodes, characters, split
from maml_edu.engine.checkpoint_files import Trained, save_checkpoint
from maml_edu.engine.progress_line import say
from maml_edu.evaluation import evaluate, mean_ci95
from maml_edu.experiments.config import CHECKPOINT, FINAL, RESULT, Config
from maml_edu.experiments.method_registry import METHODS, Learner
from maml_edu.experiments.problems import problem_of, seeded
from maml_edu.experiments.results import headline, provenance, read_result, result, typed, write_result
from maml_edu.experiments.run_folder import check_free, check_same_settings
from maml_edu.experiments.runner import (
    fit,
    folder_of,
    place,
    plain_alpha,
    protocol_of,
    scores_of,
    settings_of,
    thinned_curve,
)
from maml_edu.experiments.settings import configure
from maml_edu.models import conv4, cross_entropy
from maml_edu.step_sizes import Alpha
from maml_edu.tasks import Params, TaskBatch

OTHER_ALPHA = 0.1  # for methods that were trained without inner steps, where a study takes some


def compare_run(config: Config) -> int:
    """Train every method of the table, or go on with those that are not finished; returns the exit code."""
    given = {name: getattr(config, name) for name in config.given if name != "methods"}
    each = {
        name: configure("compare", {**given, "method": name, "out": config.out / name}, arguments=config.arguments)
        for name in config.methods
    }
    check_free(config.out, resume=False, resumable=False)  # a single run's folder is no place for a table
    for one in each.values():
        check_free(one.out, one.resume)
    for one in each.values():
        if not _train_one(one):
            return 1
    say(table({name: read_result(one.out / RESULT) for name, one in each.items()}))
    return 0


def table(rows: Mapping[str, dict]) -> str:
    """Accuracy in %, mean ± 95 % interval over test tasks, on all queries together and on one at a time."""
    lines = [f"{'accuracy in %':14}{'inner steps':>12}{'all queries':>16}{'one query':>16}{'parameters':>12}"]
    for name, row in rows.items():
        score = headline(row)
        cells = [(score["mean"], score["half_width"]), row["one_query"]]
        shown = ["diverged" if mean is None else f"{100 * mean:.1f} ± {100 * half:.1f}" for mean, half in cells]
        steps = row["protocol"]["inner_steps"]
        lines.append(f"{name:14}{steps:12}{shown[0]:>16}{shown[1]:>16}{row['parameters']:12,}")
    return "\n".join(lines)


def _train_one(config: Config) -> bool:
    """Whether it was trained to the end, now or before."""
    device, _ = place(config)
    problem = problem_of(config, device)
    with folder_of(config):
        if config.resume and (config.out / RESULT).exists():  # its studies take minutes
            check_same_settings(config.out, settings_of(config, problem))
            return True
        made = provenance(config.seed, 0.0, str(device), typed(config.arguments))
        cpu, resumed = time.process_time(), (config.out / CHECKPOINT).exists()
        trained = fit(config, problem, protocol := protocol_of(config, problem))
        cpu = time.process_time() - cpu
        if trained is None:
            return False
        scores, one_query = (
            scores_of(config, problem, trained, trained.alpha, problem.test, 2, statistics=statistics)
            for statistics in ("transductive", "one-query")
        )
        protocol = {**protocol, "alpha": plain_alpha(trained.alpha) if config.steps else None}
        more = {
            "metric": problem.metric,
            "training_cpu_seconds": None if resumed else round(cpu, 1),  # an earlier part's are not known
            "parameters": sum(p.numel() for p in problem.learner.model.theta.values()),
            "one_query": list(mean_ci95(one_query[-1].values)),
            "validation_studies": studies(config, trained),
            "curve": thinned_curve(trained.history),
        }
        made = {**made, "seconds": round(trained.history["seconds"].item(), 1)}
        stored = result(problem.name, config.method, protocol, scores, made, **more)
        write_result(config.out / RESULT, stored)
        save_checkpoint(config.out / FINAL, trained, experiment=problem.name, method=config.method, protocol=protocol)
    return True


# ---------------------------------------------------------------- validation tasks of other kinds


def studies(config: Config, trained: Trained) -> dict:
    """Accuracies [mean, half width] on validation tasks of kinds that were not trained on.

    shots: {k: one per inner step 0 … 10}; ways: {n: at the trained K}, None where the method cannot; inverted: ink and
    paper exchanged, one per inner step. Steps beyond the trained ones repeat the last α; methods that were trained
    without any take OTHER_ALPHA.
    """
    ways, shots, tasks = config.ways, config.shots, min(300, config.test_tasks)
    _, validation, _ = split(characters(config.dataset), config.split)
    alpha = trained.alpha if config.steps else OTHER_ALPHA

    def score(ways: int, shots: int, steps: int, invert: bool = False) -> list[list[float]]:
        episodes = Episodes(validation, ways, shots, 1)
        return accuracies(replace(config, ways=ways), trained.theta, alpha, episodes, steps, tasks, invert)

    any_ways = METHODS[config.method].any_ways
    return {
        "tasks": tasks,
        "alpha_without_trained_steps": None if config.steps else OTHER_ALPHA,
        "shots": {str(k): score(ways, k, 10) for k in (shots, 5, 10)},
        "ways": {str(n): score(n, shots, config.steps)[-1] if any_ways or n == ways else None for n in (ways, 10, 20)},
        "inverted": {str(k): score(ways, k, 10, invert=True) for k in (shots, 5)},
    }


def accuracies(
    config: Config, theta: Params, alpha: Alpha, episodes: Episodes, steps: int, tasks: int, invert: bool
) -> list[list[float]]:
    """[mean, half width] after 0 … steps inner steps on `tasks` episodes. invert: ink and paper exchanged."""
    learner = learner_of(config)

    def sample(count: int, generator: torch.Generator) -> TaskBatch:
        batch = episodes.sample(count, generator)
        inverted = dict(support_x=1 - batch.support_x, query_x=1 - batch.query_x)
        return batch._replace(**inverted) if invert else batch

    model, generator = learner.model._replace(theta=theta), seeded(config, 5)
    scores = evaluate(
        model, learner.loss, sample, alpha, steps, tasks, "accuracy", generator=generator, adapt=learner.adapt
    )
    return [[round(value, 5) for value in mean_ci95(s.values)] for s in scores]


def learner_of(config: Config) -> Learner:
    """A method of the table on a fresh network for config.ways classes."""
    generator = seeded(config)
    network = conv4(config.ways, config.filters, generator=generator)
    return METHODS[config.method].build["characters"](config, network, cross_entropy, generator)
