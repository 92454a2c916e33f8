"""A batch of tasks that cannot be used is refused with a message that says what to do."""

import pytest
import torch

from maml_edu.tasks import TaskBatch, check_batch


def regression(**changes):
    x, y = torch.zeros(3, 5, 2), torch.zeros(3, 5, 1)
    return TaskBatch(x, y, torch.zeros(3, 7, 2), torch.zeros(3, 7, 1))._replace(**changes)


def classification(**changes):
    y = torch.arange(5).repeat(3, 1)
    return TaskBatch(torch.zeros(3, 5, 1, 8, 8), y, torch.zeros(3, 10, 1, 8, 8), y.repeat(1, 2))._replace(**changes)


@pytest.mark.parametrize("batch", [regression(), classification(), classification(query_y=torch.zeros(3, 10).long())])
def test_usable_batches_pass(batch):
    assert check_batch(batch) is None


@pytest.mark.parametrize("side", ["support_x", "support_y", "query_x", "query_y"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_must_be_finite(side, value):
    tensor = getattr(regression(), side).clone()
    tensor[1, 2, 0] = value
    with pytest.raises(ValueError, match=f"{side} contains NaN or infinity"):
        check_batch(regression(**{side: tensor}))


@pytest.mark.parametrize(
    "batch, kind, message",
    [
        (regression(support_x=[[1.0]]), TypeError, "support_x is a list; a TaskBatch holds four tensors"),
        (regression(query_y=torch.zeros(7)), ValueError, r"query_y has shape \[7\].*query_y\.unsqueeze\(0\)"),
        (regression(query_x=torch.zeros(2, 7, 2)), ValueError, "disagree on the number of tasks.*'query_x': 2"),
        (regression(support_y=torch.zeros(3, 4, 1)), ValueError, "support_x has 5 .* support_y has 4"),
        (regression(query_x=torch.zeros(3, 6, 2)), ValueError, "query_x has 6 .* query_y has 7"),
        (regression(support_x=torch.zeros(3, 5, 2).long()), TypeError, r"support_x has dtype torch.int64.*\.float\(\)"),
        (
            regression(support_x=torch.zeros(3, 0, 2), support_y=torch.zeros(3, 0, 1)),
            ValueError,
            "support_x holds no examples; give at least one",
        ),
        (regression(query_x=torch.zeros(3, 7, 4)), ValueError, r"support input has shape \[2\] and a query .* \[4\]"),
        (regression(query_x=torch.zeros(3, 7, 2).double()), TypeError, "support_x is torch.float32 and query_x is"),
        (regression(query_y=torch.zeros(3, 7, 1).double()), TypeError, "support_y is torch.float32 and query_y is"),
        (classification(query_y=torch.zeros(3, 10)), TypeError, "support_y is torch.int64 and query_y is torch"),
    ],
)
def test_unusable_batches_are_refused(batch, kind, message):
    with pytest.raises(kind, match=message):
        check_batch(batch)


def test_query_classes_must_be_shown_in_the_support_set():
    labels = classification().query_y.clone()
    labels[2, 3] = 7
    with pytest.raises(ValueError, match=r"task 2 asks .* never shows \(\[7\]\); sample support and query from"):
        check_batch(classification(query_y=labels))


def test_to_moves_every_tensor():
    moved = regression().to("meta")
    assert isinstance(moved, TaskBatch) and all(tensor.device.type == "meta" for tensor in moved)
