"""Two gloo ranks compute what one process computes, and train to the same curve."""

import json
import re
import signal
import subprocess
import sys

import pytest
import torch
from support.child_processes import ranks
from support.problems import relative, tanh_mlp

from maml_edu.__main__ import main
from maml_edu.engine import distributed
from maml_edu.engine.checkpoint_files import load_checkpoint
from maml_edu.meta_gradient import maml

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")


def of_a_rank(folder):
    device = distributed.join(torch.device("cpu"))
    rank = distributed.rank()
    problem = tanh_mlp(tasks=5)  # 2 and 3 tasks
    alpha = {n: torch.tensor(0.1, dtype=torch.float64) for n in problem.theta}
    own = distributed.share(problem.batch)
    result = maml(problem.loss, problem.theta, own, alpha, 2)
    gradient, alpha_gradient, loss = distributed.mean(result, list(result.alpha_gradient.values()), 5)
    told = distributed.from_rank_0({"rank": rank}), distributed.any_rank(rank == 1, device)
    torch.save((len(own.support_x), gradient, alpha_gradient, loss, told), folder / f"{rank}.pt")
    distributed.leave()
    return 0


def test_two_ranks_give_the_meta_gradient_of_one_process(tmp_path):
    children = ranks(lambda: of_a_rank(tmp_path))
    assert [child.ended() for child in children] == [0, 0], [child.said for child in children]
    problem = tanh_mlp(tasks=5)
    alpha = {n: torch.tensor(0.1, dtype=torch.float64) for n in problem.theta}
    expected = maml(problem.loss, problem.theta, problem.batch, alpha, 2)
    shares = []
    for rank in (0, 1):
        tasks, gradient, alpha_gradient, loss, told = torch.load(tmp_path / f"{rank}.pt")
        shares.append(tasks)
        assert relative(gradient, expected.gradient) < 1e-12
        assert relative(dict(zip(alpha, alpha_gradient)), expected.alpha_gradient) < 1e-12
        assert torch.allclose(loss, expected.query_loss.mean(), rtol=1e-12)
        assert told == ({"rank": 0}, True)
    assert sorted(shares) == [2, 3]


TRAIN = "train --preset smoke --test-tasks 6 --test-steps 2".split()


def trained(ranks_, out, *flags):
    """What `python -m maml_edu train` leaves: in this process for one rank, in forks for two."""
    command = [*TRAIN, *flags, "--out", str(out)]
    if ranks_ == 1:
        assert main(command) == 0
    else:
        children = ranks(lambda: main(command), ranks_)
        assert [child.ended() for child in children] == [0] * ranks_, [child.said for child in children]
        assert ["wrote " in child.said for child in children] == [True, False]  # rank 0 alone speaks and writes
        assert children[1].said == ""
    return json.loads((out / "result.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "flags",
    [
        "--dataset sine --init fan-in --tasks 5 --clip 1.0",
        "--dataset glyphs --ways 3 --filters 4 --tasks 3 --steps 2 --learn-alpha --multi-step 5 --iterations 8",
    ],
    ids=["sine", "glyphs"],
)
def test_two_ranks_train_to_the_curve_of_one(flags, tmp_path):
    one, two = results = [trained(number, tmp_path / str(number), *flags.split()) for number in (1, 2)]
    assert torch.allclose(*(torch.tensor(r["curve"]["query_loss"]) for r in results), atol=2e-4)  # rounded to 1e-4
    assert [r["mean"] for r in one["per_step"]] == pytest.approx([r["mean"] for r in two["per_step"]], rel=1e-3)
    assert two["provenance"]["command"].startswith("torchrun --nproc-per-node 2 ")
    assert "2 processes, 1 thread(s) used in each" in two["provenance"]["hardware"]


RANK_OF_TORCHRUN = """
import pathlib, sys, torch
from maml_edu.engine import distributed
device = distributed.join(torch.device("cpu"))
told = distributed.from_rank_0("from 0") + str(distributed.any_rank(distributed.rank() == 1, device))
pathlib.Path(sys.argv[1], str(distributed.rank())).write_text(told + str(distributed.size()))
distributed.leave()
"""


@pytest.mark.slow
def test_torchrun_starts_the_ranks(tmp_path):
    """Which `ranks` imitates for the tests above."""
    (tmp_path / "rank.py").write_text(RANK_OF_TORCHRUN)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, str(tmp_path / "rank.py"), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["from 0True2"] * 2


def test_one_process_alone_changes_nothing():
    problem = tanh_mlp()
    result = maml(problem.loss, problem.theta, problem.batch, 0.1)
    assert distributed.share(problem.batch) is problem.batch and distributed.rank() == 0 and distributed.size() == 1
    gradient, alpha_gradient, loss = distributed.mean(result, [1.0], 3)
    assert gradient is result.gradient and alpha_gradient == [1.0] and loss == result.query_loss.mean()
    assert distributed.from_rank_0(7) == 7 and distributed.any_rank(False, "cpu") is False


def test_fewer_tasks_than_ranks_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 4)
    with pytest.raises(ValueError, match="3 tasks cannot be split over 4 processes"):
        distributed.share(tanh_mlp(tasks=3).batch)


LONG = "train --dataset sine --init fan-in --tasks 4 --iterations 100000 --test-tasks 4 --test-steps 1".split()


def test_one_ctrl_c_ends_all_ranks_with_a_checkpoint(tmp_path):
    """It reaches each rank from the terminal, and again from torchrun as SIGINT or SIGTERM; none cuts an iteration."""
    children = ranks(lambda: main([*LONG, "--out", str(tmp_path)]))
    children[0].until("tasks/s")  # it trains
    for which in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        for child in children:
            child.kill(which)
    assert [child.ended() for child in children] == [1, 0]
    assert "SIGINT: finishing this iteration" in children[0].said
    assert "no result written. Continue with --resume" in children[0].said and children[1].said == ""
    losses = load_checkpoint(tmp_path / "checkpoint.pt")[0].history["query_loss"]
    assert len(losses) % 50 == 0 and losses.isfinite().all()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_does_not_take_the_run_with_it(victim, tmp_path):
    """The others say so in one line and end; rank 0, if it is left, saves what has been learned since the last save."""
    children = ranks(lambda: main([*LONG, "--out", str(tmp_path)]))
    children[0].until("tasks/s")
    children[victim].kill(signal.SIGKILL)
    assert children[1 - victim].ended() == 2 and children[victim].ended() == -signal.SIGKILL
    lines = children[1 - victim].said.rsplit("\r")[-1].strip().splitlines()
    told = "maml_edu: another process of this run has ended or doesn't answer: interrupted after "
    assert lines[-1].startswith(told) and lines[-1].endswith(f"resume from {tmp_path}/checkpoint.pt")
    assert not any(word in children[1 - victim].said for word in ("Traceback", "gloo", "Connection"))
    if victim == 1:
        assert load_checkpoint(tmp_path / "checkpoint.pt")[0].history["query_loss"].isfinite().all()
        assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize(
    "variables, said",
    [
        (dict(WORLD_SIZE="4"), "WORLD_SIZE=4 asks for several processes, and RANK, MASTER_ADDR, MASTER_PORT isn't set"),
        (dict(WORLD_SIZE="4", RANK="0", MASTER_ADDR="node1"), "and MASTER_PORT isn't set: start the processes with"),
        (dict(WORLD_SIZE="four"), "WORLD_SIZE is 'four'; expected a number of processes"),
        (
            dict(WORLD_SIZE="2", RANK="one", MASTER_ADDR="node1", MASTER_PORT="1"),
            "processes of WORLD_SIZE at MASTER_ADDR",
        ),
        (dict(WORLD_SIZE="2", RANK="7", MASTER_ADDR="localhost", MASTER_PORT="a"), "unset WORLD_SIZE to run alone"),
    ],
)
def test_what_a_cluster_left_in_the_environment_is_named(variables, said, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((ValueError, RuntimeError), match=re.escape(said)) as error:
        distributed.join(torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_one_process_of_a_world_of_one_runs_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert distributed.join(torch.device("cpu")) == torch.device("cpu") and distributed.size() == 1
