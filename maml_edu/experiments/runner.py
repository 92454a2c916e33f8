"""One run of the command line: settings, the problem they name, training, the score and what is written."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import time

import torch

from maml_edu.baselines import joint, reptile
from maml_edu.data.sine import SineTasks
from maml_edu.engine import distributed
from maml_edu.engine.checkpoint_files import Lock, load_checkpoint, save_checkpoint
from maml_edu.evaluation import evaluate
from maml_edu.experiments.results import provenance, result, write_result
from maml_edu.meta_gradient import fomaml, maml
from maml_edu.models import conv4, cross_entropy, mlp, mse
from maml_edu.step_sizes import map_alpha
from maml_edu.training import train

METHODS = {"maml": maml, "fomaml": fomaml, "reptile": reptile, "joint": joint}
METHODS["oracle"] = joint  # joint training on tasks that are told to the model

# What each preset means; a flag on the command line overrides its entry.
PRESETS = {
    ("sine", "quick"): dict(
        shots=10, test_shots=5, steps=1, test_steps=10, alpha=0.001, tasks=25, iterations=5000, lr=1e-3
    ),
    ("sine", "full"): dict(
        shots=10, test_shots=5, steps=1, test_steps=10, alpha=0.001, tasks=25, iterations=70_000, lr=1e-3
    ),
    ("characters", "quick"): dict(
        shots=1, steps=1, test_steps=3, alpha=0.4, tasks=8, iterations=600, lr=5e-3, filters=32
    ),
    ("characters", "full"): dict(
        shots=1, steps=1, test_steps=3, alpha=0.4, tasks=32, iterations=60_000, lr=1e-3, filters=64
    ),
}
for smoke in ("sine", "characters"):
    PRESETS[smoke, "smoke"] = {**PRESETS[smoke, "quick"], "iterations": 20}
# What a protocol says of the training, as opposed to the test.
TRAINING = ("shots", "queries", "meta_batch", "iterations", "outer", "multi_step", "clip", "precision", "alpha_learned")
TRAINING += ("alpha_start", "alpha_lr", "inner_steps_train")
TEST_ALPHAS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)  # joint training has no α of its own: chosen on validation tasks


def _settings(args):
    """The preset, overridden by the flags that were given."""
    kind = "sine" if args.dataset == "sine" else "characters"
    if (kind, args.preset) not in PRESETS:  # argparse checks the flag, not the environment
        raise ValueError(f"MAML_EDU_PRESET={args.preset!r} is no preset; choose smoke, quick or full")
    chosen = dict(PRESETS[kind, args.preset])
    given = {k: v for k, v in vars(args).items() if v is not None}
    settings = {**chosen, **given}
    settings.setdefault("queries", settings["shots"])
    settings.setdefault("test_shots", settings["shots"])
    settings.setdefault("test_queries", 100 if kind == "sine" else settings["test_shots"])
    if settings["method"] == "oracle" and settings["dataset"] != "sine":
        raise ValueError("the oracle is told amplitude and phase: it exists for --dataset sine only")
    if settings["method"] == "oracle":
        settings["test_steps"] = 0  # it knows the task, so it has nothing to adapt
    return settings


def _device(name):
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {name!r} is not available here ({str(error).splitlines()[0]}); try --device cpu"
        ) from error
    return torch.device(name)


def _precision(name, device):
    """The dtype of parameters and data; TF32 is a mode of the device."""
    if name == "tf32":
        if device.type != "cuda":
            raise ValueError(f"--precision tf32 needs a CUDA device, and this run is on {device}; leave it out")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    else:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.float64 if name == "float64" else torch.float32


def _problem(s, device):
    """Model, loss, samplers for training, validation and test, the metric, and what the protocol says of them."""
    generator = torch.Generator().manual_seed(s["seed"])
    dtype = _precision(s["precision"], device)
    if s["dataset"] == "sine":
        tasks, reveal = SineTasks(), s["method"] == "oracle"
        sizes = (3 if reveal else 1, 40, 40, 1)
        model = mlp(sizes, generator=generator, dtype=dtype, device=device, init=s["init"])
        sample = functools.partial(tasks.sample, dtype=dtype, device=device, reveal=reveal)
        samplers = (
            lambda n, generator: sample(n, s["shots"], s["queries"], generator=generator),
            *[lambda n, generator: sample(n, s["test_shots"], s["test_queries"], generator=generator)] * 2,
        )
        about = {"model": f"mlp {3 if reveal else 1}-40-40-1 relu", "init": s["init"]}
        return model, mse(model.apply), samplers, "loss", about
    from maml_edu.data.episodes import Episodes, characters, split

    source = characters(s["dataset"])
    parts = split(source, s["split"])
    sizes = [(s["shots"], s["queries"]), *[(s["test_shots"], s["test_queries"])] * 2]
    episodes = [Episodes(part, s["ways"], *size, device=device) for part, size in zip(parts, sizes)]
    model = conv4(s["ways"], s["filters"], generator=generator, dtype=dtype, device=device)
    protocol = {
        "split": s["split"],
        "ways": s["ways"],
        "rotations": True,
        "resize": "28×28, Lanczos on grey levels" if source.source == "omniglot" else "drawn at 28×28",
        "loss": "mean cross-entropy",
        "statistics": "transductive",
        "filters": s["filters"],
    }

    def sampler(e):
        def sample(tasks, generator):
            batch = e.sample(tasks, generator)
            return batch._replace(support_x=batch.support_x.to(dtype), query_x=batch.query_x.to(dtype))

        return sample

    return model, cross_entropy(model.apply), [sampler(e) for e in episodes], "accuracy", protocol


def keep_freed_memory():
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


def train_run(args: argparse.Namespace) -> int:
    """Train as the arguments say, score on test tasks, leave result.json and final.pt; returns the exit code."""
    s = _settings(args)
    keep_freed_memory()
    device = distributed.join(_device(s["device"]))
    model, loss, (training, validation, test), metric, about = _problem(s, device)
    out = s["out"]
    writer = distributed.rank() == 0
    if writer:
        out.mkdir(parents=True, exist_ok=True)
        if (out / "checkpoint.pt").exists() and not s["resume"]:
            raise FileExistsError(f"{out} already holds a run: continue it with --resume, or name another --out")

    def validate(trained):
        generator = torch.Generator().manual_seed(s["seed"] + 4)
        so_far = model._replace(theta=trained.theta)
        alpha, steps = trained.alpha, s["test_steps"]
        last = evaluate(so_far, loss, validation, alpha, steps, tasks=100, metric=metric, generator=generator)[-1]
        return last.median if last.mean is None else last.mean

    protocol = _protocol(s, about)
    method = METHODS[s["method"]]
    if s["compile"]:
        from maml_edu.engine.compilation import compiled

        method = compiled(method)
    with _no_empty_folder(out), Lock(out / "lock") if writer else contextlib.nullcontext():
        trained = train(
            model,
            loss,
            training,
            method,
            iterations=s["iterations"],
            tasks=s["tasks"],
            alpha=s["alpha"],
            steps=s["steps"],
            lr=s["lr"],
            schedule=s["schedule"],
            learn_alpha=s["learn_alpha"],
            alpha_lr=s["alpha_lr"],
            multi_step=s["multi_step"],
            clip=s.get("clip"),
            generator=torch.Generator().manual_seed(s["seed"] + 1),
            progress=f"{s['dataset']} {s['method']}",
            validate=validate,
            validate_every=max(50, s["iterations"] // 20),
            checkpoint=out / "checkpoint.pt",
            resume=s["resume"],
            about={**about, **{k: s[k] for k in ("seed", "alpha", "shots", "queries", "precision")}},
        )
        where = provenance(s["seed"], 0.0, str(device))
        if not writer:
            return 0
        distributed.leave()  # the other ranks are done
        done = len(trained.history["query_loss"])
        if done < s["iterations"]:
            print(f"stopped after {done} of {s['iterations']} iterations; no result written. Continue with --resume")
            return 1
        s["alpha"] = trained.alpha
        model = model._replace(theta=trained.theta)
        _score_and_write(s, model, loss, validation, test, metric, protocol, trained, where)
    return 0


@contextlib.contextmanager
def _no_empty_folder(out):
    """Impossible settings leave nothing behind."""
    try:
        yield
    except ValueError:
        with contextlib.suppress(OSError):  # it holds something
            out.rmdir()
        raise


def evaluate_run(args: argparse.Namespace) -> int:
    """Score a checkpoint on fresh test tasks and leave result.json; returns the exit code."""
    s = _settings(args)
    device = _device(s["device"])
    model, loss, (_, validation, test), metric, about = _problem(s, device)
    trained, stored = load_checkpoint(args.checkpoint, model)
    s["alpha"] = map_alpha(lambda rate: rate.to(device) if isinstance(rate, torch.Tensor) else rate, trained.alpha)
    theta = {name: p.to(device) for name, p in trained.theta.items()}
    s["out"].mkdir(parents=True, exist_ok=True)
    where = provenance(s["seed"], 0.0, str(device))
    # How the checkpoint was trained is for the checkpoint to say (final.pt does), not for this command's defaults.
    known = {**stored.get("protocol", {}), **stored}
    protocol = {k: known.get(k) if k in TRAINING else v for k, v in _protocol(s, about).items()}
    protocol = {k: v for k, v in protocol.items() if k not in TRAINING or v is not None}
    s["method"] = stored.get("method", s["method"])
    model = model._replace(theta=theta)
    _score_and_write(s, model, loss, validation, test, metric, protocol, trained, where)
    return 0


def _protocol(s, about):
    """What the result says of the run, but for the α it ends with."""
    return {
        **about,
        "shots": s["shots"],
        "test_shots": s["test_shots"],
        "queries": s["queries"],
        "test_queries": s["test_queries"],
        "tasks": s["test_tasks"],
        "meta_batch": s["tasks"],
        "iterations": s["iterations"],
        "outer": f"Adam, lr {s['lr']:g}, {s['schedule']}",
        **({"precision": s["precision"]} if s["precision"] != "float32" else {}),
        **({"multi_step": s["multi_step"]} if s["multi_step"] else {}),
        **({"clip": s["clip"]} if s.get("clip") else {}),
        "alpha_learned": s["learn_alpha"],
        **({"alpha_start": s["alpha"], "alpha_lr": s["alpha_lr"]} if s["learn_alpha"] else {}),
        "inner_steps_train": s["steps"],
        "inner_steps": s["test_steps"],
    }


def _score_and_write(s, model, loss, validation, test, metric, protocol, trained, where):
    started = time.monotonic()
    score = functools.partial(evaluate, model, loss, steps=s["test_steps"], tasks=s["test_tasks"], metric=metric)
    if s["method"] == "joint" and s["test_steps"]:
        generator = [torch.Generator().manual_seed(s["seed"] + 3) for _ in TEST_ALPHAS]
        tried = [score(validation, alpha=a, generator=g)[-1] for a, g in zip(TEST_ALPHAS, generator)]
        best = min(range(len(tried)), key=lambda i: tried[i].median if metric == "loss" else -tried[i].median)
        if metric == "loss":
            means = [t.mean if t.mean is not None else float("inf") for t in tried]
            best = means.index(min(means))
        s["alpha"], protocol = TEST_ALPHAS[best], {**protocol, "alpha_chosen_on": "validation tasks, by the mean"}
    scores = score(test, alpha=s["alpha"], generator=torch.Generator().manual_seed(s["seed"] + 2))
    protocol = {**protocol, "alpha": plain_rates(s["alpha"])}
    name = (
        f"sine {s['test_shots']}-shot"
        if s["dataset"] == "sine"
        else f"{s['dataset']} {s['ways']}-way {s['test_shots']}-shot"
    )
    where["seconds"] = round(trained.history.get("seconds", torch.zeros(())).item() + time.monotonic() - started, 1)
    more = {"curve": thinned_curve(trained.history)} if "query_loss" in trained.history else {}
    write_result(s["out"] / "result.json", result(name, s["method"], protocol, scores, where, metric=metric, **more))
    trained = trained._replace(alpha=s["alpha"])
    save_checkpoint(s["out"] / "final.pt", trained, experiment=name, method=s["method"], protocol=protocol)
    for one in scores:
        if one.mean is None:
            print(f"{one.step:3d} steps: {one.diverged} of {one.n} tasks diverged, median {one.median:.3f}")
        else:
            print(f"{one.step:3d} steps: {metric} {one.mean:.4f} ± {one.half_width:.4f}, median {one.median:.4f}")
    print(f"wrote {s['out'] / 'result.json'}")


def thinned_curve(history):
    """At most about 200 means of the query loss; and (iteration, score) on the validation tasks."""
    losses = history["query_loss"]
    size = max(1, len(losses) // 200)
    curve = {"every": size, "query_loss": [round(c.mean().item(), 4) for c in losses.split(size)]}
    if "validation" in history:
        curve["validation"] = [[int(i), round(score, 4)] for i, score in history["validation"].tolist()]
    return curve


def plain_rates(alpha):
    """α for JSON: numbers, rounded to what is worth reading."""
    if isinstance(alpha, (list, tuple)):
        return [plain_rates(a) for a in alpha]
    if isinstance(alpha, dict):
        return {name: plain_rates(a) for name, a in alpha.items()}
    return round(float(alpha), 5)
