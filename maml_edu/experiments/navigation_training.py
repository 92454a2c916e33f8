"""Train a policy on 2-D navigation, test it on new goals, write what came out.

    python -m maml_edu.experiments.navigation_training --method maml --seed 0 --out DIR

writes DIR/result.json (mean return after 0 … 4 steps, with intervals over tasks, and the return of every test goal) and
DIR/checkpoint.pt. Ctrl-C ends the training after the iteration in progress; what was learned so far is then tested and
written.
"""

import argparse
import math
import shlex
import sys
import time
from pathlib import Path

import torch

from maml_edu.data.navigation import Navigation
from maml_edu.electives.policy_gradient import PolicyGradient, gaussian_policy
from maml_edu.engine.checkpoint_files import Trained, save_checkpoint
from maml_edu.evaluation import StepScore, evaluate
from maml_edu.experiments.results import provenance, result, write_result
from maml_edu.experiments.runner import keep_freed_memory
from maml_edu.tasks import Params
from maml_edu.training import train

# method -> surrogate of the inner steps, whether to pull back, inner steps during training
METHODS = {
    "maml": ("reinforce", True, 1),
    "dice": ("dice", True, 1),
    "ratio": ("ratio", True, 1),
    "fomaml": ("reinforce", False, 1),
    "joint": ("reinforce", False, 0),
}
ALPHA = 0.4
STD = 0.8  # of an untrained policy, in units of 0.1
# After the first step less is left to learn, and as much noise: shorter steps.
TEST_ALPHA = [ALPHA, 0.3 * ALPHA, 0.3 * ALPHA, 0.3 * ALPHA]
CLIP = 1.0  # of the meta-gradient's norm
TEST_SEED = 5000  # of the test goals and walks; step sizes and length of training were chosen on others


def train_policy(
    method: str,
    seed: int,
    family: Navigation | None = None,
    iterations: int = 200,
    tasks: int = 20,
    trajectories: int = 20,
    lr: float = 3e-3,
    clip: float = CLIP,
    progress: str | None = "training",
) -> tuple[PolicyGradient, Trained]:
    """One training from scratch. Raises ValueError for an unknown method."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    surrogate, pull, steps = METHODS[method]
    family = Navigation() if family is None else family
    generator = torch.Generator().manual_seed(seed)
    policy = gaussian_policy(generator=generator, std=STD)
    meta = PolicyGradient(family, policy.apply, surrogate, pull)
    settings = dict(iterations=iterations, tasks=tasks, alpha=ALPHA, steps=steps, lr=lr, schedule="cosine", clip=clip)
    sampler = family.sampler(trajectories, steps)
    return meta, train(policy, meta.score, sampler, meta, generator=generator, progress=progress, **settings)


def returns_after(
    meta: PolicyGradient, theta: Params, tasks: int = 200, steps: int = 4, alpha=None, trajectories: int = 20, seed=None
) -> list[StepScore]:
    """Mean return over new goals after 0 … steps inner steps, each on `trajectories` fresh ones.

    The return is the undiscounted sum of rewards until the goal is reached, at most over the horizon. alpha:
    TEST_ALPHA, if None.
    """
    scores = evaluate(
        gaussian_policy()._replace(theta=theta),
        meta.score,
        meta.family.sampler(trajectories, steps),
        TEST_ALPHA if alpha is None else alpha,
        steps,
        tasks=tasks,
        generator=torch.Generator().manual_seed(TEST_SEED if seed is None else seed),
        chunk=20,
        adapt=meta.adapt,
    )
    return [s._replace(mean=None if s.mean is None else -s.mean, median=-s.median, values=-s.values) for s in scores]


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m maml_edu.experiments.navigation_training", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--method", choices=METHODS, default="maml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--tasks", type=int, default=20, help="tasks in a meta-batch")
    parser.add_argument("--trajectories", type=int, default=20, help="per task, before and after adaptation")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--test-tasks", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()  # saves a fifth of the time

    wall, cpu = time.monotonic(), time.process_time()
    sizes = dict(iterations=args.iterations, tasks=args.tasks, trajectories=args.trajectories, lr=args.lr)
    meta, trained = train_policy(args.method, args.seed, **sizes)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    curve = -trained.history["query_loss"]
    scores = returns_after(meta, trained.theta, args.test_tasks)
    protocol = dict(
        half_width=meta.family.half_width,
        horizon=meta.family.horizon,
        discount=meta.discount,
        baseline="linear in features of state and time, least squares per task",
        policy="2-100-100-2 ReLU, Gaussian",
        trajectories_train=args.trajectories,
        trajectories=20,
        tasks=args.test_tasks,
        test_seed=TEST_SEED,
        meta_batch=args.tasks,
        iterations=len(curve),
        outer=f"Adam {args.lr:g}, cosine",
        alpha=ALPHA,
        test_alpha=TEST_ALPHA,
        inner_steps_train=METHODS[args.method][2],
        inner_steps=1,
    )
    given = sys.argv[1:] if arguments is None else arguments
    made = provenance(
        args.seed, wall, "cpu", f"python -m maml_edu.experiments.navigation_training {shlex.join(given)}".rstrip()
    )
    training = {"cpu_seconds": round(cpu, 1), "wall_seconds": round(wall, 1)}
    training["return_after_adaptation"] = [round(float(r), 2) for r in curve]
    args.out.mkdir(parents=True, exist_ok=True)
    stored = result("2-D navigation", args.method, protocol, scores, made, metric="return", training=training)
    for one, s in zip(stored["per_step"], scores):  # every run is tested on the same goals: differences can be paired
        one["values"] = [round(v, 3) if math.isfinite(v) else None for v in s.values.tolist()]
    write_result(args.out / "result.json", stored)
    about = dict(experiment="2-D navigation", method=args.method, protocol=protocol)
    save_checkpoint(args.out / "checkpoint.pt", trained._replace(history={}), **about)
    for s in scores:
        shown = f"{s.mean:.1f} ± {s.half_width:.1f}" if s.mean is not None else f"{s.diverged} tasks diverged"
        print(f"return after {s.step} steps: {shown}")
    print(f"trained in {cpu:.0f} s of processor time ({wall:.0f} s by the clock); written to {args.out}")


if __name__ == "__main__":
    main()
