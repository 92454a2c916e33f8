"""The outer loop: it learns, and it says what it cannot do."""

import math
import warnings

import numpy as np
import pytest
import torch
from support.problems import flat, relative, sines
from support.short_runs import assert_same, run, small

from maml_edu.baselines import joint, reptile
from maml_edu.data.sine import SineTasks
from maml_edu.meta_gradient import MetaGradient, fomaml, maml
from maml_edu.models import mlp, mse
from maml_edu.step_sizes import flat_alpha
from maml_edu.tasks import TaskBatch
from maml_edu.training import train

# --------------------------------------------------------------------------------------------------
# Learning


@pytest.mark.parametrize("method", [maml, fomaml, reptile, joint])
def test_training_learns(method):
    """Sines of one amplitude and few phases: the query loss falls by much more than its scatter."""
    distribution = SineTasks(amplitude=(2.0, 2.0), phase=(0.0, 0.5))
    model = mlp(generator=torch.Generator().manual_seed(0))

    def sampler(tasks, generator):
        return distribution.sample(tasks, 10, generator=generator)

    trained = train(model, mse(model.apply), sampler, method, iterations=200, tasks=8, lr=5e-3, progress=None)
    loss = trained.history["query_loss"]
    assert loss.shape == (200,) and loss.dtype == torch.float32
    assert loss[:5].mean() > 1.5 and loss[-20:].mean() < 0.5


def test_training_is_adam_on_the_meta_gradient():
    """Written out with nothing but maml and torch.optim.Adam."""
    model, loss = small()
    theta = {n: p.clone() for n, p in model.theta.items()}
    adam, generator, history = torch.optim.Adam(theta.values(), lr=2e-3), torch.Generator().manual_seed(1), []
    for _ in range(6):
        result = maml(loss, theta, sines(3, generator), 0.05, 2)
        history.append(result.query_loss.mean())
        for n, p in theta.items():
            p.grad = result.gradient[n]
        adam.step()
    trained = run(iterations=6, alpha=0.05, steps=2, lr=2e-3)
    assert relative(trained.theta, theta) < 1e-6
    assert torch.allclose(trained.history["query_loss"], torch.stack(history))
    assert trained.alpha == 0.05


def test_the_model_given_is_not_changed():
    model, loss = small()
    before = {n: p.clone() for n, p in model.theta.items()}
    trained = train(model, loss, sines, iterations=5, tasks=2, progress=None)
    assert relative(model.theta, before) == 0 and relative(trained.theta, before) > 1e-4
    assert all(p.grad is None and not p.requires_grad for p in [*model.theta.values(), *trained.theta.values()])


def test_seed_zero_if_no_generator_is_given():
    first, again = (train(*small(), sines, iterations=3, tasks=2, progress=None) for _ in range(2))
    assert_same(first, again)
    assert_same(first, run(iterations=3, tasks=2, seed=0))


@pytest.mark.parametrize("schedule, total", [("constant", 20), ("cosine", 10.5)])
def test_schedules(schedule, total):
    """Under a constant gradient every step of Adam is exactly lr long: the way is the sum of the learning rates."""
    theta = {n: p.double() for n, p in small()[0].theta.items()}
    model, loss = small()

    def slope(loss, theta, batch, alpha, steps):
        return MetaGradient({n: torch.ones_like(p) for n, p in theta.items()}, torch.zeros(1), {}, None)

    trained = train(
        model._replace(theta=theta), loss, sines, slope, iterations=20, lr=0.1, schedule=schedule, progress=None
    )
    way = flat(theta) - flat(trained.theta)
    assert torch.allclose(way, torch.full_like(way, 0.1 * total), rtol=1e-6)


@pytest.mark.parametrize("method", [maml, fomaml])
def test_learned_step_sizes(method):
    trained = run(method=method, steps=2, alpha=0.05, learn_alpha=True)
    names = list(small()[0].theta)
    assert [list(a) for a in trained.alpha] == [names, names]  # per step and parameter
    sizes = torch.stack(flat_alpha(trained.alpha))
    assert sizes.shape == (8,) and (sizes != 0.05).all() and len(set(sizes.tolist())) == 8
    assert relative(trained.theta, run(method=method, steps=2, alpha=0.05).theta) > 1e-4


@pytest.mark.parametrize("method", [maml, fomaml, reptile])
def test_numbers_of_numpy_are_numbers(method):
    model, loss = small()
    batch = sines(3, torch.Generator().manual_seed(0))
    ours = method(loss, model.theta, batch, np.float64(0.05), np.int64(2))
    assert relative(ours.gradient, method(loss, model.theta, batch, 0.05, 2).gradient) == 0
    given = dict(
        alpha=np.float64(0.05), steps=np.int64(2), lr=np.float64(2e-3), tasks=np.uint8(3), iterations=np.int16(9)
    )
    assert_same(run(method=method, **given), run(method=method, alpha=0.05, steps=2, lr=2e-3, iterations=9))


def test_learned_step_sizes_keep_the_form_given():
    names = list(small()[0].theta)
    given = dict.fromkeys(names, 0.05)
    assert list(run(iterations=2, alpha=given, learn_alpha=True).alpha) == names
    assert given == dict.fromkeys(names, 0.05)
    full = {n: torch.full_like(p, 0.05) for n, p in small()[0].theta.items()}
    learned = run(iterations=2, alpha=[full], learn_alpha=True).alpha[0]
    assert all(learned[n].shape == full[n].shape and (full[n] == 0.05).all() for n in names)
    assert all((learned[n] != 0.05).any() for n in names)


@pytest.mark.parametrize("method", [maml, fomaml])
def test_multi_step_weights_move_linearly_to_the_last_step(method):
    seen = []

    def watched(loss, theta, batch, alpha, steps, step_weights=None):
        seen.append(None if step_weights is None else step_weights.tolist())
        return method(loss, theta, batch, alpha, steps, step_weights=step_weights)

    trained = run(method=watched, steps=4, alpha=0.05, multi_step=10, iterations=12)
    assert seen[0] == pytest.approx([0.25] * 4) and seen[5] == pytest.approx([0.125] * 3 + [0.625])
    assert seen[10:] == [None, None] and all(sum(w) == pytest.approx(1) for w in seen[:10])
    assert relative(trained.theta, run(method=method, steps=4, alpha=0.05, iterations=12).theta) > 1e-4


def test_clipping_bounds_the_norm_of_the_meta_gradient():
    """Plain gradients of norm 5 per entry are scaled to a total norm; a small bound shows in Adam's second moment."""
    model, loss = small()
    entries = sum(p.numel() for p in model.theta.values())

    def slope(loss, theta, batch, alpha, steps):
        return MetaGradient({n: torch.full_like(p, 5.0) for n, p in theta.items()}, torch.zeros(1), {}, None)

    norms = []
    step = torch.optim.Adam.step

    def watched(adam):
        norms.append(math.sqrt(sum(p.grad.square().sum().item() for g in adam.param_groups for p in g["params"])))
        return step(adam)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.optim.Adam, "step", watched)
        for clip in (2.0, 1e6, None):
            train(model, loss, sines, slope, iterations=1, tasks=2, clip=clip, progress=None)
    whole = 5 * math.sqrt(entries)
    assert norms == pytest.approx([2.0, whole, whole], rel=1e-4)


def test_validation_is_kept_and_changes_nothing(tmp_path, capsys):
    seen = []

    def validate(so_far):
        seen.append(len(so_far.history["query_loss"]))
        return 0.5 + len(seen)

    options = dict(validate=validate, validate_every=12, checkpoint=tmp_path / "run.pt")
    trained = run(progress="sines", **options)
    assert seen == [12, 24, 30] and trained.history["validation"].tolist() == [[12, 1.5], [24, 2.5], [30, 3.5]]
    assert "validation 3.500" in capsys.readouterr().out
    assert_same(trained, run())
    again = run(resume=True, **options)
    assert torch.equal(again.history["validation"], trained.history["validation"])


def test_what_else_a_resumed_run_must_share(tmp_path):
    run(checkpoint=tmp_path / "run.pt", about={"seed": 1})
    with pytest.raises(ValueError, match="is of a run with seed=1, and seed=2 is asked for now"):
        run(checkpoint=tmp_path / "run.pt", about={"seed": 2}, resume=True)


def test_watch_sees_the_run_from_before_the_first_step():
    seen = []
    trained = run(iterations=25, watch=lambda i, so_far: seen.append((i, so_far)), watch_every=10)
    assert [i for i, _ in seen] == [0, 10, 20]
    assert [len(so_far.history["query_loss"]) for _, so_far in seen] == [0, 10, 20]
    assert relative(seen[0][1].theta, small()[0].theta) == 0
    assert relative(seen[2][1].theta, run(iterations=20).theta) == 0
    assert torch.equal(seen[2][1].history["query_loss"], trained.history["query_loss"][:20])


def test_progress_is_printed_or_not(capsys):
    run(progress="sines")
    assert "sines 100%" in (out := capsys.readouterr().out) and "30/30" in out and "query loss" in out
    run()
    assert capsys.readouterr().out == ""


# --------------------------------------------------------------------------------------------------
# A loss that is no longer finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_training_stops_where_the_loss_is_no_longer_finite(value):
    def sampler(tasks, generator):
        sampler.calls += 1
        batch = sines(tasks, generator)
        return batch if sampler.calls <= 13 else batch._replace(query_y=torch.full_like(batch.query_y, value))

    sampler.calls = 0
    with pytest.warns(UserWarning, match="stopped at iteration 14: the query loss is not finite .* of iteration 13"):
        trained = run(sampler)
    assert sampler.calls == 14 and trained.history["diverged"] == 14
    assert_same(trained, run(iterations=13))
    assert "diverged" not in run().history


def test_a_step_size_that_is_far_too_large_returns_finite_parameters():
    with pytest.warns(UserWarning, match="α or lr too large"):
        trained = run(alpha=1e30, steps=3)
    assert flat(trained.theta).isfinite().all()


def test_warnings_are_one_line_and_quote_nobody():
    with pytest.warns(UserWarning) as record:
        run(alpha=1e30, steps=3)
    (warning,) = record
    shown = warnings.formatwarning(warning.message, warning.category, warning.filename, warning.lineno)
    assert shown.startswith("maml_edu:0: UserWarning: training stopped at iteration") and shown.count("\n") == 1


# --------------------------------------------------------------------------------------------------
# Impossible settings


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(iterations=0), "iterations=0; expected a whole number, 1 or more"),
        (dict(tasks=0), "tasks=0; expected a whole number, 1 or more"),
        (dict(iterations=2.5), "iterations=2.5; expected a whole number"),
        (dict(steps=True), "steps=True; expected a whole number"),
        (dict(steps=np.float64(1)), "steps=.*; expected a whole number"),
        (dict(multi_step=-1), "multi_step=-1; expected a whole number, 0 or more"),
        (dict(schedule="linear"), "unknown schedule 'linear'; choose constant or cosine"),
        (dict(resume=True), "resume=True needs checkpoint=FILE"),
        (dict(clip=0.0), "clip=0.0; expected the largest norm"),
        (dict(method=reptile, multi_step=5, steps=2), "reptile has no loss after every inner step"),
        (dict(method=joint, learn_alpha=True), "joint gives no gradient for α; learn_alpha works with maml and fomaml"),
        (dict(alpha=[0.1], steps=2), "list of 1 step sizes for 2 steps"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_the_first_batch_is_checked():
    def sampler(tasks, generator):
        batch = sines(tasks, generator)
        return TaskBatch(*batch[:3], batch.query_y * math.nan)

    with pytest.raises(ValueError, match="query_y contains NaN or infinity"):
        run(sampler)
