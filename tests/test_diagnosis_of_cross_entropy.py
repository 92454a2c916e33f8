"""`diagnose` on training steps with cross-entropy."""

import copy

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss

from maml_edu.diagnosis.training_steps import from_training_step
from maml_edu.diagnosis.verdicts import diagnose


def step_with(graph=True, cut=lambda p: p, query_at_theta=False, few=0, factor=1.0, reduction="mean", evaluate=False):
    """A training step with cross-entropy, right without arguments."""

    def training_step(net, batch, alpha, steps):
        for x_s, y_s, x_q, y_q in zip(*batch):
            fast = theta = dict(net.named_parameters())
            net.train()
            for _ in range(steps - few):
                value = cross_entropy(functional_call(net, fast, x_s), y_s, reduction=reduction)
                g = torch.autograd.grad(value, fast.values(), create_graph=graph)
                fast = {name: cut(p) - alpha * d for (name, p), d in zip(fast.items(), g)}
            net.train(not evaluate)
            value = cross_entropy(functional_call(net, theta if query_at_theta else fast, x_q), y_q)
            (factor * value / len(batch.support_x)).backward()

    return training_step


def adapts_a_copy(net, batch, alpha, steps):
    for x_s, y_s, x_q, y_q in zip(*batch):
        learner = copy.deepcopy(net)
        inner = torch.optim.SGD(learner.parameters(), lr=alpha)
        for _ in range(steps):
            inner.zero_grad()
            cross_entropy(learner(x_s), y_s).backward()
            inner.step()
        cross_entropy(learner(x_q), y_q).backward()


def moves_theta(net, batch, alpha, steps):
    step_with()(net, batch, alpha, steps)
    torch.optim.SGD(net.parameters(), lr=0.1).step()


CASES = {
    "right": (step_with(), "exact"),
    "no graph": (step_with(graph=False), "first-order"),
    "φ detached": (step_with(cut=torch.Tensor.detach), "hessian"),
    "query loss at θ": (step_with(query_at_theta=True), "at-theta"),
    "an inner step is missing": (step_with(few=1), "steps"),
    "a sum for the mean inside": (step_with(reduction="sum"), "alpha"),
    "uphill": (step_with(factor=-1.0), "sign"),
    "a copy": (adapts_a_copy, "missing"),
    "θ moved": (moves_theta, "theta-modified"),
}


@pytest.mark.parametrize("case", CASES)
def test_cross_entropy_steps(case):
    function, verdict = CASES[case]
    diagnosis = diagnose(from_training_step(function, loss=cross_entropy))
    assert diagnosis.verdict == verdict, diagnosis


@pytest.mark.parametrize(("evaluate", "verdict"), [(False, "exact"), (True, "batch-norm")])
def test_cross_entropy_steps_with_batch_norm(evaluate, verdict):
    wrapped = from_training_step(step_with(evaluate=evaluate), batch_norm=True, loss=cross_entropy)
    assert diagnose(wrapped).verdict == verdict


def test_the_loss_is_a_function_and_a_step_is_held_to_the_loss_named():
    with pytest.raises(TypeError, match="pass the function itself"):
        from_training_step(step_with(), loss="cross_entropy")
    assert diagnose(from_training_step(step_with(), loss=mse_loss)).verdict != "exact"
