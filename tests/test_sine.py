"""Sine tasks: what is drawn, and the closed forms against Monte Carlo."""

import math

import pytest
import torch

from maml_edu.data.sine import SineTasks

DISTRIBUTIONS = {
    "paper": SineTasks(),
    "small and shifted": SineTasks(amplitude=(0.1, 0.5), phase=(-1.0, 2.5), x=(0.0, 4.0)),
    "signed amplitude": SineTasks(amplitude=(-1.0, 3.0), phase=(0.0, 2 * math.pi), x=(-1.0, 7.0)),
    "one phase": SineTasks(amplitude=(2.0, 2.0), phase=(0.7, 0.7), x=(-2.0, 5.0)),
    "one x": SineTasks(x=(1.3, 1.3)),
}


@pytest.fixture(params=DISTRIBUTIONS)
def sines(request):
    return DISTRIBUTIONS[request.param]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def many(sines):
    """x and y of 400,000 tasks with one example each, so that every example is independent of the others."""
    x, y, *_ = sines.sample(400_000, 1, generator=generator(), dtype=torch.float64)
    return x.flatten(), y.flatten()


def assert_mean(values, expected):
    """Within five standard errors: fails by chance once in two million."""
    error = values.std().item() / math.sqrt(len(values))
    assert abs(values.mean().item() - expected) < 5 * error + 1e-12


def test_mse_of_predicting_zero(sines, many):
    _, y = many
    assert_mean(y**2, sines.zero_mse())


def test_mse_of_the_mean_function(sines, many):
    x, y = many
    assert_mean((y - sines.mean_function(x)) ** 2, sines.floor_mse())


def test_mean_function_is_the_mean_over_tasks(sines):
    draws = generator()
    amplitude, phase = (
        low + (high - low) * torch.rand(200_000, generator=draws, dtype=torch.float64)
        for low, high in (sines.amplitude, sines.phase)
    )
    for at in (-3.0, 0.4, 2.0):
        expected = sines.mean_function(torch.tensor(at, dtype=torch.float64)).item()
        assert_mean(amplitude * torch.sin(at - phase), expected)


def test_numbers_of_the_paper():
    assert round(SineTasks().zero_mse(), 3) == 4.252
    assert round(SineTasks().floor_mse(), 3) == 3.006
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    assert torch.allclose(SineTasks().mean_function(x), -2.55 * 2 / math.pi * torch.cos(x))


def test_nobody_who_may_not_adapt_does_better(sines, many):
    """Any other function of x, here the mean function a little moved, has a larger error."""
    x, y = many
    best = sines.mean_function(x)
    for other in (1.1 * best + 0.1, best - 0.2 * torch.sin(x) - 0.1):
        assert ((y - other) ** 2).mean() > ((y - best) ** 2).mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_types_and_ranges(sines, dtype):
    batch = sines.sample(200, 5, 9, generator=generator(), dtype=dtype)
    assert [tuple(part.shape) for part in batch] == [(200, 5, 1), (200, 5, 1), (200, 9, 1), (200, 9, 1)]
    assert all(part.dtype == dtype and part.is_contiguous() for part in batch)
    x = torch.cat([batch.support_x, batch.query_x], 1)
    low, high = sines.x
    assert low <= x.min() and x.max() <= high
    assert x.max() - x.min() >= 0.98 * (high - low)
    assert torch.cat([batch.support_y, batch.query_y], 1).abs().max() <= max(map(abs, sines.amplitude)) + 1e-6


def test_as_many_queries_as_shots_unless_told():
    assert SineTasks().sample(2, 7).query_x.shape == (2, 7, 1)


def test_revealed_tasks_explain_their_targets(sines):
    """x becomes (x, A, phase), the same A and phase on both sides of a task, and y follows from it."""
    batch = sines.sample(50, 4, 6, generator=generator(), dtype=torch.float64, reveal=True)
    hidden = sines.sample(50, 4, 6, generator=generator(), dtype=torch.float64)
    for side in ("support", "query"):
        shown, y = getattr(batch, f"{side}_x"), getattr(batch, f"{side}_y")
        x, amplitude, phase = shown.split(1, dim=2)
        assert torch.allclose(y, amplitude * torch.sin(x - phase), atol=1e-12)
        assert torch.equal(x, getattr(hidden, f"{side}_x")) and torch.equal(y, getattr(hidden, f"{side}_y"))
    assert torch.equal(batch.support_x[:, 0, 1:], batch.query_x[:, 5, 1:])
    for i, (low, high) in enumerate((sines.amplitude, sines.phase), start=1):
        drawn = batch.support_x[:, 0, i]
        assert low <= drawn.min() and drawn.max() <= high
        assert low == high or drawn.std() > 0.2 * (high - low)


def test_a_seed_fixes_the_tasks():
    first, again, other = (SineTasks().sample(3, 4, generator=generator(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not any(torch.equal(a, b) for a, b in zip(first, other))
    source = generator(5)
    SineTasks().sample(3, 4, generator=source)
    following = SineTasks().sample(3, 4, generator=source)
    assert not any(torch.equal(a, b) for a, b in zip(first, following))


@pytest.mark.parametrize("arguments", [(0, 5), (3, 0), (3, 5, 0)])
def test_impossible_counts_are_refused(arguments):
    with pytest.raises(ValueError, match="each must be at least 1"):
        SineTasks().sample(*arguments)


@pytest.mark.parametrize("name", ["amplitude", "phase", "x"])
def test_a_range_goes_upwards(name):
    with pytest.raises(ValueError, match=rf"{name}=\(2, 1\) is not a range: give \(low, high\)"):
        SineTasks(**{name: (2, 1)})
