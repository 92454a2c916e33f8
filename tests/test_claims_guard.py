"""With the Hessian term taken out of the package, notebooks 02 to 05 must say so: some claim turns ✗."""

import nbformat
import pytest
from support.run_notebook import NOTEBOOKS, report, run_apart

NO_HESSIAN = """
import maml_edu.hessian_vector as _h
import maml_edu.meta_gradient as _m
import torch as _torch

_zeros = lambda params: {name: _torch.zeros_like(p) for name, p in params.items()}
_linearize = _h.linearize
_h.linearize = _m.linearize = lambda loss, params, x, y: (_linearize(loss, params, x, y)[0], _zeros)
_h.ROUTES |= {how: (lambda r: lambda *a: (r(*a)[0], _zeros(a[1])))(route) for how, route in _h.ROUTES.items()}
"""


def failed_claims(result):
    return {line for line in result.stdout.splitlines() if line.startswith("✗")}


# The cell by which a claim must have turned. What comes after it is not run: most of the training, in 04 and 05.
LAST_CELL = {"02": "nb02-package", "03": "nb03-57", "04": "nb04-29", "05": "nb05-17"}


@pytest.mark.slow
@pytest.mark.parametrize("number", LAST_CELL)
def test_some_claim_turns(number):
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    setup = next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    sound = run_apart(path, {}, LAST_CELL[number])
    broken = run_apart(path, {f"cell:{setup.id}": setup.source + NO_HESSIAN}, LAST_CELL[number])
    assert sound.returncode == 0, report(sound)
    assert broken.returncode == 0, report(broken)
    assert failed_claims(broken) - failed_claims(sound), "no claim noticed that the Hessian term is gone"
