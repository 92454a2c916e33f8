"""Model-agnostic meta-learning laid bare: tasks, models with explicit parameters, and the exact meta-gradient by hand.

Start with `maml_edu/meta_gradient.py`; it is short, and everything else serves it. Each name below is loaded when you
first use it, so that `import maml_edu` is quick and asks for nothing but what you use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers: the same names, as they are
    from maml_edu.baselines import joint as joint
    from maml_edu.baselines import reptile as reptile
    from maml_edu.classroom.checks import check as check
    from maml_edu.classroom.checks import claim as claim
    from maml_edu.classroom.checks import hint as hint
    from maml_edu.classroom.checks import solution as solution
    from maml_edu.classroom.checks import yours as yours
    from maml_edu.classroom.guesses import answer as answer
    from maml_edu.classroom.guesses import guess as guess
    from maml_edu.classroom.lesson import by_preset as by_preset
    from maml_edu.classroom.lesson import seeded as seeded
    from maml_edu.classroom.progress_record import progress as progress
    from maml_edu.data.drawn_glyphs import glyphs as glyphs
    from maml_edu.data.episodes import Episodes as Episodes
    from maml_edu.data.episodes import characters as characters
    from maml_edu.data.episodes import split as split
    from maml_edu.data.omniglot_files import omniglot as omniglot
    from maml_edu.data.sine import SineTasks as SineTasks
    from maml_edu.diagnosis.training_steps import from_training_step as from_training_step
    from maml_edu.diagnosis.verdicts import diagnose as diagnose
    from maml_edu.engine.checkpoint_files import load_checkpoint as load_checkpoint
    from maml_edu.engine.checkpoint_files import save_checkpoint as save_checkpoint
    from maml_edu.evaluation import evaluate as evaluate
    from maml_edu.evaluation import mean_ci95 as mean_ci95
    from maml_edu.hessian_vector import hvp as hvp
    from maml_edu.learner import MAML as MAML
    from maml_edu.meta_gradient import (
        MetaGradient as MetaGradient,
    )
    from maml_edu.meta_gradient import (
        adapt as adapt,
    )
    from maml_edu.meta_gradient import (
        fomaml as fomaml,
    )
    from maml_edu.meta_gradient import (
        maml as maml,
    )
    from maml_edu.meta_gradient import (
        pull_back as pull_back,
    )
    from maml_edu.models import (
        conv4 as conv4,
    )
    from maml_edu.models import (
        cross_entropy as cross_entropy,
    )
    from maml_edu.models import (
        from_module as from_module,
    )
    from maml_edu.models import (
        mlp as mlp,
    )
    from maml_edu.models import (
        mse as mse,
    )
    from maml_edu.reference import autograd_maml as autograd_maml
    from maml_edu.tasks import TaskBatch as TaskBatch
    from maml_edu.tasks import check_batch as check_batch
    from maml_edu.training import train as train

__version__ = "0.2.0"

_HOME = {
    "tasks": "TaskBatch check_batch",
    "meta_gradient": "MetaGradient adapt fomaml maml pull_back",
    "hessian_vector": "hvp",
    "reference": "autograd_maml",
    "baselines": "joint reptile",
    "models": "conv4 cross_entropy from_module mlp mse",
    "data.sine": "SineTasks",
    "data.drawn_glyphs": "glyphs",
    "data.omniglot_files": "omniglot",
    "data.episodes": "Episodes characters split",
    "evaluation": "evaluate mean_ci95",
    "learner": "MAML",
    "engine.checkpoint_files": "load_checkpoint save_checkpoint",
    "training": "train",
    "diagnosis.verdicts": "diagnose",
    "diagnosis.training_steps": "from_training_step",
    "classroom.checks": "check claim hint solution yours",
    "classroom.guesses": "answer guess",
    "classroom.lesson": "by_preset seeded",
    "classroom.progress_record": "progress",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}
__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> object:
    """Load a public name from the module that defines it."""
    if name not in _MODULE_OF:
        raise AttributeError(f"maml_edu has no {name!r}; it offers {', '.join(sorted(_MODULE_OF))}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
