"""`diagnose` on implementations that are right, by other means than the package's."""

import numpy as np
import pytest
import torch

from maml_edu.diagnosis.training_steps import from_training_step
from maml_edu.diagnosis.verdicts import diagnose


def by_numpy(loss, theta, batch, alpha, steps):
    """MAML of the one-hidden-layer tanh network, forward, backward and both derivatives of the step by hand."""
    names = ("w1", "b1", "w2", "b2")
    start = {name: theta[name].detach().numpy() for name in names}
    total = {name: np.zeros_like(start[name]) for name in names}
    for x_s, y_s, x_q, y_q in zip(*(field.numpy() for field in batch)):
        path = [start]
        for _ in range(steps):
            g = numpy_gradient(path[-1], x_s, y_s)
            path.append({name: path[-1][name] - alpha * g[name] for name in names})
        v = numpy_gradient(path[-1], x_q, y_q)
        for params in reversed(path[:-1]):
            hv = numpy_product(params, x_s, y_s, v)
            v = {name: v[name] - alpha * hv[name] for name in names}
        total = {name: total[name] + v[name] / len(batch.support_x) for name in names}
    return {name: torch.from_numpy(t) for name, t in total.items()}


def numpy_gradient(p, x, y):
    h = np.tanh(x @ p["w1"] + p["b1"])
    e = 2 * (h @ p["w2"] + p["b2"] - y) / y.size
    d = (e @ p["w2"].T) * (1 - h**2)
    return {"w1": x.T @ d, "b1": d.sum(0), "w2": h.T @ e, "b2": e.sum(0)}


def numpy_product(p, x, y, v):
    """H·v: every line of the gradient, differentiated in the direction v (Pearlmutter 1994)."""
    h = np.tanh(x @ p["w1"] + p["b1"])
    e = 2 * (h @ p["w2"] + p["b2"] - y) / y.size
    rh = (1 - h**2) * (x @ v["w1"] + v["b1"])
    re = 2 * (rh @ p["w2"] + h @ v["w2"] + v["b2"]) / y.size
    rd = (re @ p["w2"].T + e @ v["w2"].T) * (1 - h**2) - 2 * (e @ p["w2"].T) * h * rh
    return {"w1": x.T @ rd, "b1": rd.sum(0), "w2": rh.T @ e + h.T @ re, "b2": re.sum(0)}


def by_torch_func(loss, theta, batch, alpha, steps):
    def one_task(theta, *fields):
        x_s, y_s, x_q, y_q = (field.unsqueeze(0) for field in fields)
        phi = theta
        for _ in range(steps):
            g = torch.func.grad(lambda p: loss(p, x_s, y_s)[0])(phi)
            phi = {name: phi[name] - alpha * g[name] for name in phi}
        return loss(phi, x_q, y_q)[0]

    def objective(theta):
        return torch.func.vmap(one_task, in_dims=(None, 0, 0, 0, 0))(theta, *batch).mean()

    return torch.func.grad(objective)({name: p.detach() for name, p in theta.items()})


def by_higher(net, batch, alpha, steps):
    higher = pytest.importorskip("higher")
    for x_s, y_s, x_q, y_q in zip(*batch):
        with higher.innerloop_ctx(net, torch.optim.SGD(net.parameters(), lr=alpha), copy_initial_weights=False) as (
            fast,
            inner,
        ):
            for _ in range(steps):
                inner.step(torch.nn.functional.mse_loss(fast(x_s), y_s))
            (torch.nn.functional.mse_loss(fast(x_q), y_q) / len(batch.support_x)).backward()


@pytest.mark.parametrize("function", [by_numpy, by_torch_func, from_training_step(by_higher)])
def test_right_ones_by_other_means_are_exact(function):
    assert diagnose(function).verdict == "exact"
