"""Every method of the series under one name: how it is built, for which tasks, and what it takes.

A method is built when it is used, and imports what it needs then: `--help` lists them all at once, without torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from maml_edu.experiments.config import Config

if TYPE_CHECKING:
    import torch

    from maml_edu.engine.methods import MetaGradientFunction
    from maml_edu.models import Model
    from maml_edu.models.model import Apply
    from maml_edu.reference import Start
    from maml_edu.step_sizes import Alpha
    from maml_edu.tasks import Loss, Params

    LossOf = Callable[[Apply], Loss]  # mse or cross_entropy
    # (config, network, the loss of an `apply`, generator of the network's weights) -> Learner
    Build = Callable[[Config, Model, LossOf, torch.Generator], "Learner"]


class Learner(NamedTuple):
    """What a method makes of a network: what is learned, its meta-gradient, and how it adapts to a new task.

    method: as `train` takes it; adapt and loss: as `evaluate` takes them. alpha: the step sizes to begin with. start:
    where φ_0 is computed from the support set, the function that does it.
    """

    model: Model
    loss: Loss
    method: MetaGradientFunction
    adapt: Callable[..., list[Params]]
    alpha: Alpha
    start: Start | None = None


@dataclass(frozen=True)
class Entry:
    """summary: one line for `--help`. build: by kind of tasks ("sine", "characters", "navigation").

    defaults: settings of its own, by kind; they take precedence over the preset's. ignores: settings that would change
    nothing. learns_alpha, multi_step, compiles: whether --learn-alpha, --multi-step and --compile work with it.
    any_ways: whether what it learned takes any number of classes.
    """

    summary: str
    build: Mapping[str, Build]
    defaults: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    ignores: tuple[str, ...] = ()
    learns_alpha: bool = False
    multi_step: bool = False
    compiles: bool = False
    any_ways: bool = False


# ---------------------------------------------------------------- plain gradient steps


def _plain(config: Config, network: Model, loss_of: LossOf, generator: torch.Generator, name: str) -> Learner:
    from maml_edu import baselines, meta_gradient

    method = getattr(meta_gradient if name in ("maml", "fomaml") else baselines, name)
    return Learner(network, loss_of(network.apply), method, meta_gradient.adapt, config.alpha)


_maml, _fomaml, _reptile, _joint = (
    functools.partial(_plain, name=name) for name in ("maml", "fomaml", "reptile", "joint")
)


def _metasgd(config: Config, network: Model, loss_of: LossOf, generator: torch.Generator) -> Learner:
    from maml_edu.electives.inner_optimizers import alpha_per_parameter

    plain = _maml(config, network, loss_of, generator)
    return plain._replace(alpha=alpha_per_parameter(network.theta, config.alpha))


def _anil(config: Config, network: Model, loss_of: LossOf, generator: torch.Generator) -> Learner:
    from maml_edu.electives.feature_reuse import anil, body_names, freeze
    from maml_edu.meta_gradient import adapt

    def adapt_head(
        loss: Loss, theta: Params, x: torch.Tensor, y: torch.Tensor, alpha: Alpha, steps: int
    ) -> list[Params]:
        return adapt(loss, theta, x, y, freeze(alpha, theta, body_names(theta)), steps)

    return Learner(network, loss_of(network.apply), anil(network.apply, loss_of), adapt_head, config.alpha)


# ---------------------------------------------------------------- other inner loops, and other ways back


def _truncated(config: Config, network: Model, loss_of: LossOf, generator: torch.Generator) -> Learner:
    from maml_edu.electives.inner_optimizers import truncated_maml

    method = functools.partial(truncated_maml, keep=config.keep)
    return _maml(config, network, loss_of, generator)._replace(method=method)


def _momentum(config: Config, network: Model, loss_of: LossOf, generator: torch.Generator) -> Learner:
    from maml_edu.electives.inner_optimizers import momentum_adapt, momentum_maml

    method = functools.partial(momentum_maml, momentum=config.momentum)
    adapt = functools.partial(momentum_adapt, momentum=config.momentum)
    return Learner(network, loss_of(network.apply), method, adapt, config.alpha)


def _adam(config: Config, network: Model, loss_of: LossOf, generator: torch.Generator) -> Learner:
    from maml_edu.electives.inner_optimizers import adam_adapt, adam_maml

    method = functools.partial(adam_maml, epsilon=config.epsilon)
    adapt = functools.partial(adam_adapt, epsilon=config.epsilon)
    return Learner(network, loss_of(network.apply), method, adapt, config.alpha)


def _imaml(config: Config, network: Model, loss_of: LossOf, generator: torch.Generator) -> Learner:
    from maml_edu.electives.implicit import imaml, proximal_adapt

    method = functools.partial(imaml, strength=config.strength, cg_steps=config.cg_steps)
    adapt = functools.partial(proximal_adapt, strength=config.strength)
    return Learner(network, loss_of(network.apply), method, adapt, config.alpha)


# ---------------------------------------------------------------- starts computed from the support set


def _prototypes(config: Config, network: Model, loss_of: LossOf, generator: torch.Generator) -> Learner:
    from maml_edu.electives.conditioned_starts import adapt_from, maml_from
    from maml_edu.electives.prototypes import prototypical

    model, start = prototypical(network, config.ways)
    return Learner(model, loss_of(model.apply), maml_from(start), adapt_from(start), config.alpha, start)


def _hypernetwork(config: Config, network: Model, loss_of: LossOf, generator: torch.Generator) -> Learner:
    from maml_edu.electives.conditioned_starts import adapt_from, maml_from
    from maml_edu.electives.hypernetworks import hypernetwork

    model, start = hypernetwork(network, config.ways, generator=generator)
    return Learner(model, loss_of(model.apply), maml_from(start), adapt_from(start), config.alpha, start)


def _process(config: Config, network: Model, loss_of: LossOf, generator: torch.Generator) -> Learner:
    from maml_edu.electives.conditioned_starts import adapt_from, maml_from
    from maml_edu.electives.neural_processes import neural_process_classifier

    model, start = neural_process_classifier(network, config.ways, generator=generator)
    return Learner(model, loss_of(model.apply), maml_from(start), adapt_from(start), config.alpha, start)


def _process_on_sines(config: Config, network: Model, loss_of: LossOf, generator: torch.Generator) -> Learner:
    """Encoder and decoder take the place of the network; the loss asks for an uncertainty as well."""
    from maml_edu.electives.conditioned_starts import adapt_from, maml_from
    from maml_edu.electives.neural_processes import gaussian_nll, neural_process

    model, start = neural_process(generator=generator.manual_seed(config.seed))
    return Learner(model, gaussian_nll(model.apply), maml_from(start), adapt_from(start), config.alpha, start)


# ---------------------------------------------------------------- policy gradients


def _policy_gradient(
    config: Config, network: Model, loss_of: LossOf, generator: torch.Generator, surrogate: str, pull: bool = True
) -> Learner:
    from maml_edu.data.navigation import Navigation
    from maml_edu.electives.policy_gradient import PolicyGradient

    meta = PolicyGradient(Navigation(), network.apply, surrogate, pull)
    return Learner(network, meta.score, meta, meta.adapt, config.alpha)


_reinforce, _dice, _ratio = (functools.partial(_policy_gradient, surrogate=s) for s in ("reinforce", "dice", "ratio"))
_first_order_policy = functools.partial(_reinforce, pull=False)


# ---------------------------------------------------------------- the registry


def _both(build: Build) -> dict[str, Build]:
    return {"sine": build, "characters": build}


_NO_STEPS = ("steps", "test_steps", "alpha")
_ONE_PASS = {"steps": 0, "test_steps": 0, "learn_alpha": False}
# One step size for every step: no more steps at test than in training.
_META_SGD: dict[str, object] = {"learn_alpha": True, "alpha_lr": 1e-3, "test_steps": 1}
METHODS: dict[str, Entry] = {
    "maml": Entry(
        "gradient steps, pulled back exactly (Finn et al. 2017)",
        {**_both(_maml), "navigation": _reinforce},
        learns_alpha=True,
        multi_step=True,
        compiles=True,
    ),
    "fomaml": Entry(
        "the same steps, nothing pulled back (Finn et al. 2017)",
        {**_both(_fomaml), "navigation": _first_order_policy},
        learns_alpha=True,
        multi_step=True,
        compiles=True,
    ),
    "reptile": Entry("θ − φ in place of a gradient (Nichol et al. 2018)", _both(_reptile), compiles=True),
    "joint": Entry(
        "no adaptation in training: what meta-learning is compared with",
        {**_both(_joint), "navigation": _first_order_policy},
        defaults={"navigation": {"steps": 0}},
        ignores=("steps", "alpha"),
        compiles=True,
    ),
    "oracle": Entry(
        "joint training of a network that is told amplitude and phase",
        {"sine": _joint},
        defaults={"sine": {"test_steps": 0}},
        ignores=_NO_STEPS,
        compiles=True,
    ),
    "anil": Entry("the head alone adapts (Raghu et al. 2020)", _both(_anil)),
    "metasgd": Entry(
        "a learned step size for every parameter (Li et al. 2017)",
        _both(_metasgd),
        defaults={"sine": _META_SGD, "characters": {**_META_SGD, "alpha_lr": 1e-2}},
        learns_alpha=True,
        multi_step=True,
    ),
    "truncated": Entry(
        "only the last --keep steps are pulled back (Shaban et al. 2019)",
        _both(_truncated),
        defaults={"sine": {"steps": 5}, "characters": {"steps": 3}},
    ),
    "momentum": Entry(
        "inner steps with momentum",
        _both(_momentum),
        defaults={"sine": {"steps": 5}, "characters": {"steps": 3, "alpha": 0.2}},
        learns_alpha=True,
    ),
    "adam": Entry(
        "inner steps of Adam",
        _both(_adam),
        defaults={"sine": {"steps": 5, "alpha": 0.03}, "characters": {"steps": 3}},
        learns_alpha=True,
    ),
    "imaml": Entry(
        "a proximal minimum, and one linear system solved there (Rajeswaran et al. 2019)",
        _both(_imaml),
        defaults={
            "sine": {"steps": 10, "alpha": 0.01, "strength": 5.0},
            "characters": {"steps": 5, "test_steps": 5, "alpha": 0.4},
        },
    ),
    "prototypes": Entry(
        "the class means are the head (Snell et al. 2017)",
        {"characters": _prototypes},
        defaults={"characters": _ONE_PASS},
        ignores=_NO_STEPS,
        any_ways=True,
    ),
    "protomaml": Entry(
        "class means as the head, then gradient steps (Triantafillou et al. 2020)",
        {"characters": _prototypes},
        learns_alpha=True,
        any_ways=True,
    ),
    "hypernetwork": Entry(
        "a network generates the start, then gradient steps (Ha et al. 2017)",
        {"characters": _hypernetwork},
        learns_alpha=True,
        any_ways=True,
    ),
    "process": Entry(
        "a conditional neural process: one forward pass (Garnelo et al. 2018)",
        {"sine": _process_on_sines, "characters": _process},
        # shots 0: drawn anew from 1 to 10 for every meta-batch
        defaults={
            "sine": {**_ONE_PASS, "shots": 0, "queries": 10, "lr": 2e-3, "schedule": "cosine"},
            "characters": _ONE_PASS,
        },
        ignores=(*_NO_STEPS, "init"),
    ),
    "dice": Entry("the Hessian that is right on average (Foerster et al. 2018)", {"navigation": _dice}),
    "ratio": Entry("its variant of low variance (Rothfuss et al. 2019)", {"navigation": _ratio}),
}
COMPARED = ("maml", "prototypes", "protomaml", "hypernetwork", "process")


def methods_of(command: str) -> tuple[str, ...]:
    """The names that a command's --method (or --methods) takes."""
    if command == "compare":
        return COMPARED
    kinds = {"navigation"} if command == "navigate" else {"sine", "characters"}
    return tuple(name for name, entry in METHODS.items() if kinds & set(entry.build))
