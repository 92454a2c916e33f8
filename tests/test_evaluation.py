"""Scores of held-out tasks: intervals, divergence, accuracy, and where batch norm takes its statistics from."""

import math
import statistics

import pytest
import torch
from support.problems import one_task_at_a_time, small_conv4, tanh_mlp

from maml_edu.data.sine import SineTasks
from maml_edu.evaluation import evaluate, mean_ci95, running_statistics
from maml_edu.meta_gradient import adapt
from maml_edu.models import Model, conv4, cross_entropy, mlp, mse
from maml_edu.tasks import TaskBatch


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Pool:
    """A sampler that hands out a fixed batch from its beginning, and remembers how it was asked."""

    def __init__(self, batch):
        self.batch, self.at, self.asked = batch, 0, []

    def __call__(self, tasks, generator=None):
        self.asked.append(tasks)
        self.at += tasks
        assert self.at <= len(self.batch.support_x)
        return TaskBatch(*(part[self.at - tasks : self.at] for part in self.batch))


# --------------------------------------------------------------------------------------------------
# The interval


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0, 4.0], [0.2, 0.4], torch.rand(2, 50, generator=generator())])
def test_interval(values):
    mean, half_width = mean_ci95(values)
    values = torch.as_tensor(values).flatten().tolist()
    assert mean == pytest.approx(statistics.mean(values))
    assert half_width == pytest.approx(1.96 * statistics.stdev(values) / math.sqrt(len(values)))


def test_interval_holds_the_true_mean_19_times_out_of_20():
    draws = torch.rand(4000, 100, generator=generator())
    held = sum(abs(mean - 0.5) <= half_width for mean, half_width in map(mean_ci95, draws))
    assert 0.93 < held / 4000 < 0.965


def test_interval_of_one_value_and_of_none():
    assert mean_ci95([3.0]) == (3.0, math.inf)
    with pytest.raises(ValueError, match="at least one value"):
        mean_ci95([])


# --------------------------------------------------------------------------------------------------
# Losses


def test_scores_of_every_step():
    """Against gradient descent written out task by task."""
    problem = tanh_mlp(tasks=7)
    model = Model(problem.theta, apply=None)  # for losses, the loss alone is called
    scores = evaluate(model, problem.loss, Pool(problem.batch), 0.2, 3, tasks=7)
    paths = one_task_at_a_time(problem, problem.theta, 0.2, 3)
    assert [s.step for s in scores] == [0, 1, 2, 3]
    for score in scores:
        queries = zip(problem.batch.query_x.split(1), problem.batch.query_y.split(1))
        expected = [problem.loss(path[score.step], x, y).item() for path, (x, y) in zip(paths, queries)]
        assert score.values.tolist() == pytest.approx(expected)
        assert (score.mean, score.half_width) == pytest.approx(mean_ci95(expected))
        assert score.median == pytest.approx(sorted(expected)[3])
        assert (score.diverged, score.n) == (0, 7)
    assert scores[3].mean < scores[0].mean


def test_chunks_change_nothing_but_memory():
    problem = tanh_mlp(tasks=11)
    model = Model(problem.theta, apply=None)
    whole = evaluate(model, problem.loss, Pool(problem.batch), 0.2, 2, tasks=11)
    for chunk, asked in ((1, [1] * 11), (4, [4, 4, 3]), (11, [11]), (50, [11])):
        pool = Pool(problem.batch)
        parts = evaluate(model, problem.loss, pool, 0.2, 2, tasks=11, chunk=chunk)
        assert pool.asked == asked
        for a, b in zip(whole, parts):
            assert torch.allclose(a.values, b.values, rtol=1e-10) and a.n == b.n


def test_the_same_generator_gives_the_same_tasks():
    model = mlp((1, 8, 1), generator=generator())

    def scores(seed):
        def sampler(tasks, generator):
            return SineTasks().sample(tasks, 5, generator=generator)

        scored = evaluate(model, mse(model.apply), sampler, 0.01, 2, tasks=30, chunk=20, generator=generator(seed))
        return torch.stack([s.values for s in scored])

    assert torch.equal(scores(3), scores(3)) and not torch.equal(scores(3), scores(4))
    assert len(set(scores(3)[0].tolist())) == 30  # the second chunk is not the first again


def test_a_list_of_step_sizes_repeats_its_last():
    problem = tanh_mlp(tasks=3)
    model = Model(problem.theta, apply=None)
    sizes = dict.fromkeys(problem.theta, 0.3)

    def values(alpha):
        return torch.stack([s.values for s in evaluate(model, problem.loss, Pool(problem.batch), alpha, 4, tasks=3)])

    assert torch.equal(values([0.1, sizes]), values([0.1, sizes, sizes, sizes]))
    assert torch.equal(values([0.1, sizes, 0.2, 0.4, 0.5]), values([0.1, sizes, 0.2, 0.4]))
    assert not torch.equal(values([0.1, sizes]), values([sizes, 0.1]))
    with pytest.raises(ValueError, match="list of 0 step sizes"):
        values([])


def test_the_model_is_not_changed():
    problem = tanh_mlp(tasks=3)
    before = {n: p.clone() for n, p in problem.theta.items()}
    scores = evaluate(Model(problem.theta, None), problem.loss, Pool(problem.batch), 0.2, 2, tasks=3)
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in problem.theta.items())
    assert not any(s.values.requires_grad for s in scores)


# --------------------------------------------------------------------------------------------------
# Divergence: tasks ½h(w − c)² under α = 0.5, which converges for h = 1 and explodes for h = 100


def parabolas(*curvatures):
    def loss(params, x, y):
        return 0.5 * (x[:, 0, 0] * (params["w"] - 1) ** 2)

    x = torch.tensor(curvatures, dtype=torch.float64).view(-1, 1, 1)
    return Model({"w": torch.tensor(0.0, dtype=torch.float64)}, None), loss, Pool(TaskBatch(x, x, x, x))


def test_a_diverging_task_is_counted_and_hidden_in_no_mean():
    scores = evaluate(*parabolas(1.0, 1.0, 100.0, 1.0, 1.2), 0.5, 2, tasks=5)
    first, second, third = scores
    assert (first.diverged, second.diverged, third.diverged) == (0, 1, 1)
    assert first.mean == pytest.approx(0.5 * (3 + 100 + 1.2) / 5) and first.half_width > 0
    for score in (second, third):
        assert score.mean is None and score.half_width is None and score.n == 5
        assert score.median == sorted(score.values.tolist())[2]
    assert second.median == pytest.approx(0.125)


def test_a_loss_that_only_grows_a_little_is_no_divergence():
    """h = 4.4: |1 − αh| = 1.2, so the loss grows by 1.44 in every step, and passes ten times the worst after seven."""
    scores = evaluate(*parabolas(4.4, 4.4), 0.5, 7, tasks=2)
    assert [s.diverged for s in scores] == [0] * 7 + [2]


def test_infinite_losses_are_counted():
    *_, last = evaluate(*parabolas(1.0, 1.0, 1e200, 1e200, 1e200), 0.5, 3, tasks=5)
    assert last.diverged == 3 and last.mean is None and last.median == math.inf


def test_a_loss_infinite_before_adaptation_is_counted():
    model, loss, pool = parabolas(1.0, 1.0, 1e200)
    (score,) = evaluate(model, lambda *inputs: 1e200 * loss(*inputs), pool, 0.5, 0, tasks=3)
    assert (score.diverged, score.mean, score.median) == (1, None, 0.5e200)


# --------------------------------------------------------------------------------------------------
# Accuracy and batch norm


def pictures(tasks):
    """A small conv4, and tasks in which every class is a picture of its own plus noise."""
    (*_, batch), draws = small_conv4(tasks=tasks), generator()
    of_class = torch.randn(tasks, 3, 1, 8, 8, generator=draws, dtype=torch.float64)
    support, query = (x + of_class.repeat_interleave(x.shape[1] // 3, 1) for x in (batch.support_x, batch.query_x))
    model = conv4(3, 4, 8, generator=draws, dtype=torch.float64)
    return model, batch._replace(support_x=1 + 2 * support, query_x=query)  # the two have other statistics


def test_accuracy_is_the_fraction_right():
    model, batch = pictures(tasks=6)
    scores = evaluate(model, cross_entropy(model.apply), Pool(batch), 0.4, 2, tasks=6, metric="accuracy")
    path = adapt(cross_entropy(model.apply), model.theta, batch.support_x, batch.support_y, 0.4, 2)
    for score, phi in zip(scores, path):
        guesses = model.apply(phi, batch.query_x).argmax(2).tolist()
        right = [sum(g == y for g, y in zip(*task)) / 9 for task in zip(guesses, batch.query_y.tolist())]
        assert score.values.tolist() == pytest.approx(right)
        assert score.mean == pytest.approx(statistics.mean(right))


def logits(model, phi, batch, mode, t):
    """What each mode means, for one task: which examples the batch norms see."""
    phi = {n: p[t : t + 1] for n, p in phi.items()}
    support, query = batch.support_x[t : t + 1], batch.query_x[t : t + 1]
    if mode == "transductive":
        return model.apply(phi, query)[0]
    if mode == "support":
        return model.apply(phi, torch.cat([query] * 2, 1), context=support)[0, : query.shape[1]]
    if mode == "one-query":
        alone = [model.apply(phi, torch.cat([support, q], 1))[0, -1:] for q in query.split(1, dim=1)]
        return torch.cat(alone)
    return model.apply(phi, query, context=mode)[0]


def test_modes_of_batch_norm():
    model, batch = pictures(tasks=12)
    loss = cross_entropy(model.apply)
    phi = adapt(loss, model.theta, batch.support_x, batch.support_y, 0.4, 1)[-1]
    fixed = running_statistics(model, loss, lambda tasks, generator: batch, 0.4, 1, batches=2, tasks=12)
    scored = {}
    for name in ("transductive", "support", "one-query", "fixed"):
        mode = fixed if name == "fixed" else name
        scores = evaluate(model, loss, Pool(batch), 0.4, 1, 12, metric="accuracy", statistics=mode)
        guesses = torch.stack([logits(model, phi, batch, mode, t).argmax(1) for t in range(12)])
        scored[name] = scores[-1].values
        assert torch.equal(scored[name], (guesses == batch.query_y).double().mean(1))
    assert len({tuple(values.tolist()) for values in scored.values()}) == 4  # they are not the same thing


def test_running_statistics_follow_every_forward_pass():
    """Support at θ_0 and θ_1, then query at θ_2, of two meta-batches, each moving the average by a tenth."""
    model, batch = pictures(tasks=3)
    loss = cross_entropy(model.apply)
    running = running_statistics(model, loss, lambda tasks, generator: batch, 0.4, 2, batches=2)
    path = adapt(loss, model.theta, batch.support_x, batch.support_y, 0.4, 2)
    passes = [model.apply.statistics(*one) for one in [*zip(path, [batch.support_x] * 2), (path[2], batch.query_x)]]
    for layer in ("conv1", "conv4"):
        for i in (0, 1):
            average = passes[0][layer][i]
            for seen in (passes * 2)[1:]:
                average = 0.9 * average + 0.1 * seen[layer][i]
            assert torch.allclose(running[layer][i], average, rtol=1e-9)


def test_running_statistics_of_a_model_without_batch_norm():
    model = mlp()
    assert running_statistics(model, mse(model.apply), None, 0.01, 1) == {}


# --------------------------------------------------------------------------------------------------
# Impossible settings


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(metric="f1"), "unknown metric 'f1'; choose loss or accuracy"),
        (dict(statistics="running"), "unknown statistics 'running'; choose transductive, one-query, support"),
        (dict(tasks=0), "tasks=0, chunk=100: each must be at least 1"),
        (dict(chunk=0), "chunk=0: each must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    model = mlp()
    with pytest.raises(ValueError, match=message):
        evaluate(model, mse(model.apply), None, 0.01, 1, **options)


def test_the_first_batch_is_checked():
    problem = tanh_mlp(tasks=3)
    batch = problem.batch._replace(query_y=problem.batch.query_y[:, 1:])
    with pytest.raises(ValueError, match="query_x has 6 .* query_y has 5"):
        evaluate(Model(problem.theta, None), problem.loss, Pool(batch), 0.2, 1, tasks=3)
