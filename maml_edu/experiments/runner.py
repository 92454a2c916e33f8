"""One run, from a Config to result.json: `train`, `evaluate`, and the pieces that the other commands share."""

import contextlib
import ctypes
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial

import torch

from maml_edu.engine import distributed
from maml_edu.engine.checkpoint_files import Trained, load_checkpoint, save_checkpoint
from maml_edu.engine.progress_line import say
from maml_edu.evaluation import StepScore, evaluate
from maml_edu.experiments.config import CHECKPOINT, FINAL, OPTIONS, RESULT, Config
from maml_edu.experiments.method_registry import METHODS
from maml_edu.experiments.problems import Problem, first_alpha, problem_of, seeded
from maml_edu.experiments.results import provenance, result, typed, write_result
from maml_edu.experiments.run_folder import check_same_settings, run_folder
from maml_edu.experiments.settings import configure
from maml_edu.step_sizes import Alpha, map_alpha
from maml_edu.tasks import Sampler
from maml_edu.training import train

TEST_ALPHAS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)  # joint training has no α of its own: chosen on validation tasks
# Where a run happens and what it is called, as opposed to what comes out of it.
ELSEWHERE = ("out", "resume", "threads", "device", "compile", "preset", "methods", "checkpoint")
# protocol -> setting, for a checkpoint that is evaluated; the test's own are overridden by flags
SETTING_OF = {
    **{name: name for name in ("split", "ways", "filters", "init", "test_shots", "test_queries")},
    **{name: name for name in ("momentum", "epsilon", "strength", "cg_steps")},
    "inner_steps": "test_steps",
}


# ---------------------------------------------------------------- the commands


def train_run(config: Config) -> int:
    """Train, score on test tasks, leave result.json and final.pt; returns the exit code."""
    device, dtype = place(config)
    problem = problem_of(config, device, dtype)
    with folder_of(config):
        made = provenance(config.seed, 0.0, str(device), typed(config.arguments))
        trained = fit(config, problem, protocol := protocol_of(config, problem))
        if trained is None:
            return 0 if distributed.rank() else 1
        _score_and_write(config, problem, trained, protocol, made)
    return 0


def evaluate_run(config: Config) -> int:
    """Score a checkpoint on fresh test tasks and leave result.json; returns the exit code."""
    trained, stored = load_checkpoint(config.checkpoint)
    protocol, known = _described(config.checkpoint, stored)
    given = {name: getattr(config, name) for name in config.given}
    config = configure("evaluate", given, known, config.arguments)
    device, _ = place(config)
    problem = problem_of(config, device, next((p.dtype for p in trained.theta.values()), torch.float32))
    load_checkpoint(config.checkpoint, problem.learner.model)  # of the same shapes, or an error that names one
    trained = trained._replace(
        theta={name: p.to(device) for name, p in trained.theta.items()},
        alpha=map_alpha(lambda a: a.to(device) if isinstance(a, torch.Tensor) else a, trained.alpha),
    )
    # How the checkpoint was trained is for the checkpoint to say.
    protocol = {**protocol, **problem.about, **_of_the_test(config)}
    with run_folder(config.out, resume=False, resumable=False):
        made = provenance(config.seed, 0.0, str(device), typed(config.arguments))
        _score_and_write(config, problem, trained, protocol, made, keep=False)
    return 0


def _described(path: str, stored: Mapping[str, object]) -> tuple[dict, dict]:
    """The protocol in a checkpoint, and the settings it implies."""
    protocol, method = stored.get("protocol"), stored.get("method")
    experiment = stored.get("experiment")
    if not isinstance(protocol, dict) or not isinstance(method, str) or method not in METHODS:
        raise ValueError(
            f"{path} doesn't say how it was trained (method and protocol), so it can't be scored from here"
        )
    if experiment == "2-D navigation":
        raise ValueError(f"{path} is a policy: navigate scores what it trains; evaluate takes sines and characters")
    known = {setting: protocol[name] for name, setting in SETTING_OF.items() if name in protocol}
    known["method"] = method
    if isinstance(experiment, str):
        known["dataset"] = experiment.partition(" ")[0]
    return protocol, known


# ---------------------------------------------------------------- where it runs


def place(config: Config) -> tuple[torch.device, torch.dtype]:
    """The device and the numbers of a run; joins the other processes, if torchrun started some."""
    keep_freed_memory()
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} is not available here ({reason}); try --device cpu") from error
    device = torch.device(name)
    tf32 = config.precision == "tf32"
    if tf32 and device.type != "cuda":
        raise ValueError(f"--precision tf32 needs a CUDA device, and this run is on {device}; leave it out")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    return distributed.join(device), torch.float64 if config.precision == "float64" else torch.float32


def keep_freed_memory() -> None:
    """On Linux, have malloc keep what is freed: the next iteration wants the same blocks again.

    Given back and asked for anew, their pages cost a fifth of the time of a large step (32 tasks, 64 filters).
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # not glibc
        return
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, 2**25)


def folder_of(config: Config) -> contextlib.AbstractContextManager[None]:
    """The folder of a run, for the one process that writes."""
    return contextlib.nullcontext() if distributed.rank() else run_folder(config.out, config.resume)


# ---------------------------------------------------------------- training


def fit(config: Config, problem: Problem, protocol: dict) -> Trained | None:
    """Train, or go on training what is in --out. None if it ended early (and said why), or for all ranks but one."""
    learner, path = problem.learner, config.out / CHECKPOINT
    settings = settings_of(config, problem)
    about = {**settings, "experiment": problem.name, "protocol": protocol}
    if config.resume and distributed.rank() == 0 and path.exists():
        check_same_settings(config.out, settings)
    method = learner.method
    if config.compile:
        from maml_edu.engine.compilation import compiled

        method = compiled(method)
    trained = train(
        learner.model,
        learner.loss,
        problem.training,
        method,
        iterations=config.iterations,
        tasks=config.tasks,
        alpha=first_alpha(problem, config),
        steps=config.steps,
        lr=config.lr,
        schedule=config.schedule,
        learn_alpha=config.learn_alpha,
        alpha_lr=config.alpha_lr,
        multi_step=config.multi_step,
        clip=config.clip,
        generator=problem.generator,
        progress=f"{config.dataset} {config.method}",
        validate=_validation(config, problem),
        validate_every=max(50, config.iterations // 20),
        checkpoint=path,
        resume=config.resume,
        about=about,
    )
    if distributed.rank():
        return None
    distributed.leave()  # the other processes are done
    return trained if _finished(config, trained) else None


def settings_of(config: Config, problem: Problem) -> dict[str, object]:
    """All that a run to be resumed must share; where its tasks really came from is one of them."""
    asked = {n: v for n, v in asdict(config).items() if n in OPTIONS and n not in ELSEWHERE}
    asked = {n: v for n, v in asked.items() if config.command in OPTIONS[n].metadata["commands"]}
    return {**asked, "method": config.method, "source": problem.source}


def _finished(config: Config, trained: Trained) -> bool:
    done = len(trained.history["query_loss"])
    if done == config.iterations:
        return True
    stopped = f"stopped after {done} of {config.iterations} iterations; no result written"
    diverged = "diverged" in trained.history
    say(f"{stopped}: try a smaller --lr or --alpha" if diverged else f"{stopped}. Continue with --resume")
    return False


def _validation(config: Config, problem: Problem) -> Callable[[Trained], float] | None:
    sampler, learner = problem.validation, problem.learner
    if sampler is None:
        return None

    def validate(trained: Trained) -> float:
        model = learner.model._replace(theta=trained.theta)
        score = partial(evaluate, model, learner.loss, sampler, trained.alpha, config.test_steps, tasks=100)
        last = score(metric=problem.metric, generator=seeded(config, 4), adapt=learner.adapt)[-1]
        return last.median if last.mean is None else last.mean

    return validate


# ---------------------------------------------------------------- scoring


def scores_of(
    config: Config,
    problem: Problem,
    trained: Trained,
    alpha: Alpha,
    sampler: Sampler,
    offset: int,
    statistics: str = "transductive",
) -> list[StepScore]:
    """`evaluate` after 0 … config.test_steps steps on config.test_tasks tasks, drawn with seed + offset."""
    learner = problem.learner
    return evaluate(
        learner.model._replace(theta=trained.theta),
        learner.loss,
        sampler,
        alpha,
        config.test_steps,
        config.test_tasks,
        problem.metric,
        statistics,
        seeded(config, offset),
        adapt=learner.adapt,
    )


def _score_and_write(
    config: Config,
    problem: Problem,
    trained: Trained,
    protocol: dict,
    made: dict,
    keep: bool = True,
) -> None:
    """keep: whether the parameters are new, and so worth a file."""
    started, alpha = time.monotonic(), trained.alpha
    if config.method == "joint" and config.test_steps and problem.validation is not None:
        alpha = _best_test_alpha(config, problem, trained, problem.validation)
        protocol = {**protocol, "alpha_chosen_on": "validation tasks, by the mean"}
    scores = scores_of(config, problem, trained, alpha, problem.test, 2)
    without_steps = problem.learner.start is not None and config.test_steps == 0
    protocol = {**protocol, "alpha": None if without_steps else plain_alpha(alpha)}
    seconds = trained.history.get("seconds", torch.zeros(())).item() + time.monotonic() - started
    made = {**made, "seconds": round(seconds, 1)}
    more = {"curve": thinned_curve(trained.history)} if "query_loss" in trained.history else {}
    stored = result(problem.name, config.method, protocol, scores, made, metric=problem.metric, **more)
    write_result(config.out / RESULT, stored)
    if keep:
        about = {"experiment": problem.name, "method": config.method, "protocol": protocol}
        save_checkpoint(config.out / FINAL, trained._replace(alpha=alpha), **about)
    for one in scores:
        if one.mean is None:
            say(f"{one.step:3d} steps: {one.diverged} of {one.n} tasks diverged, median {one.median:.3f}")
        else:
            say(f"{one.step:3d} steps: {problem.metric} {one.mean:.4f} ± {one.half_width:.4f}, median {one.median:.4f}")
    say(f"wrote {config.out / RESULT}")


def _best_test_alpha(config: Config, problem: Problem, trained: Trained, validation: Sampler) -> float:
    tried = [scores_of(config, problem, trained, a, validation, 3)[-1] for a in TEST_ALPHAS]
    if problem.metric == "loss":
        means = [t.mean if t.mean is not None else float("inf") for t in tried]
        return TEST_ALPHAS[means.index(min(means))]
    return TEST_ALPHAS[max(range(len(tried)), key=lambda i: tried[i].median)]


# ---------------------------------------------------------------- what the result says


def protocol_of(config: Config, problem: Problem) -> dict:
    """What the result says of the run, but for the α it ends with."""
    entry = METHODS[config.method]
    optional = ("multi_step", "clip")
    of_method = [n for n, o in OPTIONS.items() if config.method in o.metadata.get("methods", ())]
    return {
        **problem.about,
        "shots": config.shots or "1 to 10",
        "queries": config.queries,
        **_of_the_test(config),
        "meta_batch": config.tasks,
        "iterations": config.iterations,
        "outer": f"Adam, lr {config.lr:g}, {config.schedule}",
        **({"precision": config.precision} if config.precision != "float32" else {}),
        **{n: getattr(config, n) for n in optional if getattr(config, n)},
        **{("pulled_back" if n == "keep" else n): getattr(config, n) for n in of_method},
        **({"alpha_on_the_body": 0.0} if config.method == "anil" else {}),
        "alpha_learned": config.learn_alpha and entry.learns_alpha,
        **({"alpha_start": config.alpha, "alpha_lr": config.alpha_lr} if config.learn_alpha else {}),
        "inner_steps_train": config.steps,
    }


def _of_the_test(config: Config) -> dict:
    return {
        "test_shots": config.test_shots,
        "test_queries": config.test_queries,
        "tasks": config.test_tasks,
        "inner_steps": config.test_steps,
    }


def thinned_curve(history: Mapping[str, torch.Tensor]) -> dict:
    """At most about 200 means of the query loss; and (iteration, score) on the validation tasks."""
    losses = history["query_loss"]
    size = max(1, len(losses) // 200)
    curve: dict = {"every": size, "query_loss": [round(c.mean().item(), 4) for c in losses.split(size)]}
    if "validation" in history:
        curve["validation"] = [[int(i), round(score, 4)] for i, score in history["validation"].tolist()]
    return curve


def plain_alpha(alpha: Alpha) -> object:
    """α for JSON: numbers, rounded to what is worth reading; the mean of a tensor with one for every parameter."""
    return map_alpha(lambda a: round(float(torch.as_tensor(a, dtype=torch.float64).mean()), 5), alpha)
