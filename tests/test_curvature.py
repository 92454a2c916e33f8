"""Extreme curvatures against the eigenvalues of the whole Hessian."""

import pytest
import torch
from support.problems import PROBLEMS, random_like, tanh_mlp

from maml_edu.electives.curvature import extreme_curvatures
from maml_edu.hessian_vector import hvp
from maml_edu.tasks import expand_over_tasks


def whole_hessian(problem, params):
    """[T, P, P], a column at a time."""
    tasks, x, y = problem.batch.support_x.shape[0], problem.batch.support_x, problem.batch.support_y
    sizes = [p[0].numel() for p in params.values()]
    columns = []
    for unit in torch.eye(sum(sizes), dtype=torch.float64):
        v = {n: part.view(p[0].shape).expand_as(p) for (n, p), part in zip(params.items(), unit.split(sizes))}
        columns.append(torch.cat([t.reshape(tasks, -1) for t in hvp(problem.loss, params, x, y, v).values()], 1))
    return torch.stack(columns, 2)


@pytest.mark.parametrize("name", ["mlp", "module"])
def test_curvatures_are_the_ends_of_the_spectrum(name):
    problem = PROBLEMS[name]()
    params = expand_over_tasks(problem.theta, problem.batch.support_x.shape[0])
    params = {n: p + 0.3 * d for (n, p), d in zip(params.items(), random_like(params).values())}  # tasks differ
    exact = torch.linalg.eigvalsh(whole_hessian(problem, params))
    assert exact.shape[1] > 20 and exact[:, 0].max() < 0 < exact[:, -1].min()
    lowest, highest = extreme_curvatures(problem.loss, params, *problem.batch[:2], iterations=exact.shape[1])
    assert torch.allclose(highest, exact[:, -1], rtol=1e-9) and torch.allclose(lowest, exact[:, 0], rtol=1e-8)


def test_few_iterations_stay_inside_and_come_close():
    problem = tanh_mlp()
    params = expand_over_tasks(problem.theta, 3)
    exact = torch.linalg.eigvalsh(whole_hessian(problem, params))
    lowest, highest = extreme_curvatures(problem.loss, params, *problem.batch[:2], iterations=15)
    assert (lowest >= exact[:, 0] - 1e-9).all() and (highest <= exact[:, -1] + 1e-9).all()
    assert torch.allclose(highest, exact[:, -1], rtol=1e-2)


def test_an_exhausted_basis_adds_no_eigenvalue():
    """½h‖φ‖² has one curvature h, found by the first product; rounding must not add others."""

    def bowl(params, x, y):
        return 0.5 * x[:, 0, 0] * params["w"].square().sum(1)

    h = torch.tensor([2.0, 5.0], dtype=torch.float64).view(2, 1, 1)
    params = {"w": torch.ones(2, 6, dtype=torch.float64)}
    lowest, highest = extreme_curvatures(bowl, params, h, h, iterations=6)
    assert torch.allclose(lowest, h[:, 0, 0]) and torch.allclose(highest, h[:, 0, 0])


def test_a_task_that_diverged_gets_nan_and_leaves_the_others_alone():
    problem = tanh_mlp()
    params = expand_over_tasks(problem.theta, 3)
    alone = extreme_curvatures(problem.loss, params, *problem.batch[:2])
    broken = {n: torch.cat([torch.full_like(p[:1], torch.nan), p[1:]]) for n, p in params.items()}
    for extremes, expected in zip(extreme_curvatures(problem.loss, broken, *problem.batch[:2]), alone):
        assert extremes[0].isnan() and torch.allclose(extremes[1:], expected[1:])
