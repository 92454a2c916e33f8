"""Model-agnostic meta-learning laid bare: tasks, models with explicit parameters, and the exact meta-gradient by hand.

Start with `maml_edu/meta_gradient.py`; it is short, and everything else serves it. Each name below is loaded when you
first use it, so that `import maml_edu` is quick and asks for nothing but what you use.
"""

from importlib import import_module

__version__ = "0.1.0"

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
    "engine.checkpoint_files": "load_checkpoint save_checkpoint",
    "training": "train",
    "diagnosis.verdicts": "diagnose",
    "diagnosis.training_steps": "from_training_step",
    "classroom.checks": "check claim hint solution",
    "classroom.progress_record": "progress",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}
__all__ = list(_MODULE_OF)  # noqa: PLE0605


def __getattr__(name: str) -> object:
    """Load a public name from the module that defines it."""
    if name not in _MODULE_OF:
        raise AttributeError(f"maml_edu has no {name!r}; it offers {', '.join(sorted(_MODULE_OF))}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
