"""Two gloo ranks compute what one process computes, and train to the same curve."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from support.problems import relative, tanh_mlp

from maml_edu.engine import distributed
from maml_edu.engine.checkpoint_files import read_state
from maml_edu.meta_gradient import maml


def of_a_rank(rank, size, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    problem = tanh_mlp(tasks=5)  # 2 and 3 tasks
    alpha = {n: torch.tensor(0.1, dtype=torch.float64) for n in problem.theta}
    own = distributed.share(problem.batch)
    result = maml(problem.loss, problem.theta, own, alpha, 2)
    gradient, rates, loss = distributed.mean(result, list(result.alpha_gradient.values()), 5)
    told = distributed.from_rank_0({"rank": rank}), distributed.any_rank(rank == 1, torch.device("cpu"))
    torch.save((len(own.support_x), gradient, rates, loss, told), f"{folder}/{rank}.pt")
    distributed.leave()


def test_two_ranks_give_the_meta_gradient_of_one_process(tmp_path):
    torch.multiprocessing.spawn(of_a_rank, (2, str(tmp_path)), nprocs=2)
    problem = tanh_mlp(tasks=5)
    alpha = {n: torch.tensor(0.1, dtype=torch.float64) for n in problem.theta}
    expected = maml(problem.loss, problem.theta, problem.batch, alpha, 2)
    shares = []
    for rank in (0, 1):
        tasks, gradient, rates, loss, told = torch.load(tmp_path / f"{rank}.pt")
        shares.append(tasks)
        assert relative(gradient, expected.gradient) < 1e-12
        assert relative(dict(zip(alpha, rates)), expected.alpha_gradient) < 1e-12
        assert torch.allclose(loss, expected.query_loss.mean(), rtol=1e-12)
        assert told == ({"rank": 0}, True)
    assert sorted(shares) == [2, 3]


@pytest.mark.parametrize(
    "flags",
    [
        "--dataset sine --init fan-in --tasks 5 --clip 1.0",
        "--dataset glyphs --ways 3 --filters 4 --tasks 3 --steps 2 --learn-alpha --multi-step 10",
    ],
    ids=["sine", "glyphs"],
)
def test_two_ranks_train_to_the_curve_of_one(flags, tmp_path):
    flags = [*flags.split(), "--preset", "smoke", "--test-tasks", "6", "--test-steps", "2"]
    results = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if ranks == 2 else []
        command = [sys.executable, *launch, "-m", "maml_edu", "train", *flags, "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote ") == 1  # rank 0 alone writes
        results.append(json.loads((out / "result.json").read_text(encoding="utf-8")))
    one, two = results
    assert torch.allclose(*(torch.tensor(r["curve"]["query_loss"]) for r in results), atol=2e-4)  # rounded to 1e-4
    assert [r["mean"] for r in one["per_step"]] == pytest.approx([r["mean"] for r in two["per_step"]], rel=1e-3)
    assert two["provenance"]["command"].startswith("torchrun --nproc-per-node 2 -m maml_edu train")
    assert "2 processes, 1 thread(s) used in each" in two["provenance"]["hardware"]


def test_one_process_alone_changes_nothing():
    problem = tanh_mlp()
    result = maml(problem.loss, problem.theta, problem.batch, 0.1)
    assert distributed.share(problem.batch) is problem.batch and distributed.rank() == 0 and distributed.size() == 1
    gradient, rates, loss = distributed.mean(result, [1.0], 3)
    assert gradient is result.gradient and rates == [1.0] and loss == result.query_loss.mean()
    assert distributed.from_rank_0(7) == 7 and distributed.any_rank(False, "cpu") is False


def test_fewer_tasks_than_ranks_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 4)
    with pytest.raises(ValueError, match="3 tasks cannot be split over 4 processes"):
        distributed.share(tanh_mlp(tasks=3).batch)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_one_ctrl_c_ends_all_ranks_with_a_checkpoint(tmp_path):
    """It reaches every rank from the terminal, and once more as SIGTERM from torchrun; neither cuts an iteration."""
    flags = "train --dataset sine --init fan-in --tasks 4 --iterations 100000 --test-tasks 4 --test-steps 1".split()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "maml_edu"]
    run = subprocess.Popen(
        [*launch, *flags, "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    read = b""
    while b"tasks/s" not in read:  # it trains
        assert (more := run.stdout.read1()), f"ended before it could be interrupted: {run.communicate()}"
        read += more
    time.sleep(0.7)  # in the middle of things
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert b"no result written. Continue with --resume" in out and b"Connection closed" not in err, err.decode()
    state = read_state(tmp_path / "checkpoint.pt")
    assert len(state["query_loss"]) % 50 == 0 and state["query_loss"].isfinite().all()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
