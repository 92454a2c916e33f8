"""What a Config asks to be learned: the network, the learner, and tasks to train on, to validate on and to test on."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from maml_edu.data.episodes import Episodes, characters, split
from maml_edu.data.omniglot_files import DownloadError
from maml_edu.data.sine import SineTasks
from maml_edu.electives.policy_gradient import gaussian_policy
from maml_edu.experiments.config import Config, kind_of
from maml_edu.experiments.method_registry import METHODS, Learner
from maml_edu.models import Apply, Model, conv4, cross_entropy, mlp, mse
from maml_edu.step_sizes import Alpha
from maml_edu.tasks import Loss, Sampler, TaskBatch

LARGEST_SHOTS = 10  # of a neural process on sines, which is trained on 1 to this many
POLICY_STD = 0.8  # of an untrained policy's actions, in units of 0.1


class Problem(NamedTuple):
    """name: of the experiment in the result. metric: "loss", "accuracy" or "return". about: for the protocol.

    validation is None where nothing is validated. generator: draws the training tasks. source: of the tasks.
    """

    name: str
    learner: Learner
    training: Sampler
    validation: Sampler | None
    test: Sampler
    metric: str
    about: dict
    generator: torch.Generator
    source: str


def problem_of(config: Config, device: torch.device, dtype: torch.dtype = torch.float32) -> Problem:
    """Raises ValueError where the tasks can't be had: too few characters, or no Omniglot."""
    if config.dataset == "sine":
        return _sines(config, device, dtype)
    return _navigation(config) if config.dataset == "navigation" else _characters(config, device, dtype)


def seeded(config: Config, offset: int = 0) -> torch.Generator:
    """The generator of a run's seed; offset keeps its uses apart."""
    return torch.Generator().manual_seed(config.seed + offset)


def _learner(
    config: Config,
    network: Model,
    loss_of: Callable[[Apply], Loss],
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
) -> Learner:
    build = METHODS[config.method].build[kind_of(config.dataset)]
    learner = build(config, network, loss_of, generator)
    theta = {name: p.to(device, dtype) for name, p in learner.model.theta.items()}
    return learner._replace(model=learner.model._replace(theta=theta))


def _sines(config: Config, device: torch.device, dtype: torch.dtype) -> Problem:
    reveal, generator = config.method == "oracle", seeded(config)
    inputs = 3 if reveal else 1
    network = mlp((inputs, 40, 40, 1), generator=generator, dtype=dtype, device=device, init=config.init)
    sample = partial(SineTasks().sample, dtype=dtype, device=device, reveal=reveal)

    def training(tasks: int, generator: torch.Generator) -> TaskBatch:
        shots = config.shots or int(torch.randint(1, LARGEST_SHOTS + 1, (), generator=generator))
        return sample(tasks, shots, config.queries, generator=generator)

    def test(tasks: int, generator: torch.Generator) -> TaskBatch:
        return sample(tasks, config.test_shots, config.test_queries, generator=generator)

    about = {"model": f"mlp {inputs}-40-40-1 relu", "init": config.init}
    if config.method == "process":
        about = {"model": "encoder 2-40-40-40, decoder 1-40-40-2, relu", "loss": "Gaussian, nats"}
    learner = _learner(config, network, mse, generator, device, dtype)
    name = f"sine {config.test_shots}-shot"
    return Problem(name, learner, training, test, test, "loss", about, seeded(config, 1), "sine")


def _characters(config: Config, device: torch.device, dtype: torch.dtype) -> Problem:
    try:
        found = characters(config.dataset)
    except DownloadError as error:
        raise ValueError(
            "Omniglot is not here and couldn't be downloaded: point MAML_EDU_DATA at a folder with its two archives, "
            "or use --dataset glyphs, characters that the package draws itself"
        ) from error
    parts = split(found, config.split)
    sizes = [(config.shots, config.queries), *[(config.test_shots, config.test_queries)] * 2]
    training, validation, test = (
        _in_dtype(Episodes(part, config.ways, *size, device=device), dtype) for part, size in zip(parts, sizes)
    )
    generator = seeded(config)
    network = conv4(config.ways, config.filters, generator=generator, dtype=dtype)
    about = {
        "split": config.split,
        "ways": config.ways,
        "rotations": True,
        "resize": "28×28, Lanczos on grey levels" if found.source == "omniglot" else "drawn at 28×28",
        "loss": "mean cross-entropy",
        "statistics": "transductive",
        "filters": config.filters,
    }
    learner = _learner(config, network, cross_entropy, generator, device, dtype)
    name = f"{found.source} {config.ways}-way {config.test_shots}-shot"
    generator = seeded(config, 1)
    return Problem(name, learner, training, validation, test, "accuracy", about, generator, found.source)


def _in_dtype(episodes: Episodes, dtype: torch.dtype) -> Sampler:
    def sample(tasks: int, generator: torch.Generator) -> TaskBatch:
        batch = episodes.sample(tasks, generator)
        return batch._replace(support_x=batch.support_x.to(dtype), query_x=batch.query_x.to(dtype))

    return sample


def _navigation(config: Config) -> Problem:
    """One generator for the weights and then for the goals. The trajectories at test are those of the protocol."""
    from maml_edu.data.navigation import Navigation

    generator = seeded(config)
    policy = gaussian_policy(generator=generator, std=POLICY_STD)
    learner = _learner(config, policy, mse, generator, torch.device("cpu"), torch.float32)
    world = Navigation()
    training, test = world.sampler(config.trajectories, config.steps), world.sampler()
    return Problem("2-D navigation", learner, training, None, test, "return", {}, generator, "navigation")


def first_alpha(problem: Problem, config: Config) -> Alpha:
    """The step sizes to begin with. Where they are learned and φ_0 has parameters of its own, one for each of these."""
    learner = problem.learner
    if learner.start is None or not config.learn_alpha:
        return learner.alpha
    example = problem.training(1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        names = learner.start(learner.model.theta, example.support_x, example.support_y)
    return [dict.fromkeys(names, config.alpha) for _ in range(config.steps)]
