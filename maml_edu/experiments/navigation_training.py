"""Train a policy on 2-D navigation and test it on new goals.

    python -m maml_edu navigate --method maml --seed 0 --out DIR

writes DIR/result.json: the mean return after 0 … 4 steps with intervals over tasks, and the return of every test goal.
"""

import math
import time

import torch

from maml_edu.electives.policy_gradient import DISCOUNT, PolicyGradient, gaussian_policy
from maml_edu.engine import distributed
from maml_edu.engine.checkpoint_files import save_checkpoint
from maml_edu.engine.progress_line import say
from maml_edu.evaluation import StepScore, evaluate
from maml_edu.experiments.config import CHECKPOINT, FINAL, RESULT, Config
from maml_edu.experiments.problems import problem_of
from maml_edu.experiments.results import provenance, result, typed, write_result
from maml_edu.experiments.runner import fit, folder_of, place
from maml_edu.step_sizes import Alpha
from maml_edu.tasks import Params

ALPHA = 0.4
# After the first step less is left to learn, and as much noise: shorter steps.
TEST_ALPHA = [ALPHA, 0.3 * ALPHA, 0.3 * ALPHA, 0.3 * ALPHA]
TEST_SEED = 5000  # of the test goals and trajectories; step sizes and length of training were chosen on others
TEST_TRAJECTORIES = 20


def returns_after(
    meta: PolicyGradient, theta: Params, tasks: int = 200, steps: int = 4, alpha: Alpha | None = None
) -> list[StepScore]:
    """Mean return over new goals after 0 … steps inner steps, each on fresh trajectories.

    The return is the undiscounted sum of rewards until the goal is reached, at most over the horizon. alpha:
    TEST_ALPHA, if None.
    """
    scores = evaluate(
        gaussian_policy()._replace(theta=theta),
        meta.score,
        meta.navigation.sampler(TEST_TRAJECTORIES, steps),
        TEST_ALPHA if alpha is None else alpha,
        steps,
        tasks=tasks,
        generator=torch.Generator().manual_seed(TEST_SEED),
        chunk=20,
        adapt=meta.adapt,
    )
    return [s._replace(mean=None if s.mean is None else -s.mean, median=-s.median, values=-s.values) for s in scores]


def navigate_run(config: Config) -> int:
    """Train, score on new goals, leave result.json and final.pt; returns the exit code."""
    device, _ = place(config)
    problem = problem_of(config, device)
    meta = problem.learner.method
    assert isinstance(meta, PolicyGradient)  # of every method on navigation
    with folder_of(config):
        made = provenance(config.seed, 0.0, str(device), typed(config.arguments))
        cpu, resumed = time.process_time(), (config.out / CHECKPOINT).exists()
        trained = fit(config, problem, protocol_of(config, meta))
        cpu = time.process_time() - cpu
        if trained is None:
            return 0 if distributed.rank() else 1
        scores = returns_after(meta, trained.theta, config.test_tasks)
        wall = trained.history["seconds"].item()
        training = {
            "cpu_seconds": None if resumed else round(cpu, 1),  # an earlier part's are not known
            "wall_seconds": round(wall, 1),
            "return_after_adaptation": [round(-float(loss), 2) for loss in trained.history["query_loss"]],
        }
        protocol, made = protocol_of(config, meta), {**made, "seconds": round(wall, 1)}
        stored = result(problem.name, config.method, protocol, scores, made, metric=problem.metric, training=training)
        for one, s in zip(stored["per_step"], scores):  # every run has the same test goals: differences can be paired
            one["values"] = [round(v, 3) if math.isfinite(v) else None for v in s.values.tolist()]
        write_result(config.out / RESULT, stored)
        about = {"experiment": problem.name, "method": config.method, "protocol": protocol}
        save_checkpoint(config.out / FINAL, trained._replace(history={}), **about)
    for s in scores:
        shown = f"{s.mean:.1f} ± {s.half_width:.1f}" if s.mean is not None else f"{s.diverged} tasks diverged"
        say(f"return after {s.step} steps: {shown}")
    say(f"wrote {config.out / RESULT}")
    return 0


def protocol_of(config: Config, meta: PolicyGradient) -> dict:
    """What the result says of the run."""
    return {
        "half_width": meta.navigation.half_width,
        "horizon": meta.navigation.horizon,
        "discount": DISCOUNT,
        "baseline": "linear in features of state and time, least squares per task",
        "policy": "2-100-100-2 ReLU, Gaussian",
        "trajectories_train": config.trajectories,
        "trajectories": TEST_TRAJECTORIES,
        "tasks": config.test_tasks,
        "test_seed": TEST_SEED,
        "meta_batch": config.tasks,
        "iterations": config.iterations,
        "outer": f"Adam {config.lr:g}, {config.schedule}",
        "alpha": config.alpha,
        "test_alpha": TEST_ALPHA,
        "inner_steps_train": config.steps,
        "inner_steps": 1,
    }
