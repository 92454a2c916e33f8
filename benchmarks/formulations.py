"""Ways to compute the same exact meta-gradient of the convolutional network, timed in turns; see README.md.

python benchmarks/formulations.py --threads 2
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from contestants import pictures

from maml_edu.experiments.results import provenance
from maml_edu.meta_gradient import maml
from maml_edu.models import cross_entropy
from maml_edu.models.fast_layers import batch_norm_relu, conv
from maml_edu.tasks import TaskBatch

TURN, STARTED = 0.3, time.perf_counter()  # seconds


def grouped(h, weight, tasks):
    return F.conv2d(h, weight, stride=2, padding=1, groups=tasks)


def unfolded(h, weight, tasks):
    """Patches [T, n·positions, 9C] times weights [T, 9C, F]."""
    n, side = h.shape[0], (h.shape[2] + 1) // 2
    x = h.view(n, tasks, -1, *h.shape[2:]).transpose(0, 1).flatten(0, 1)  # [T·n, C, H, W]
    patches = F.unfold(x, 3, padding=1, stride=2).view(tasks, n, -1, side * side).transpose(1, 2).flatten(2)
    out = weight.view(tasks, -1, patches.shape[1]) @ patches  # [T, F, n·positions]
    return out.view(tasks, -1, n, side, side).permute(2, 0, 1, 3, 4).flatten(1, 2)


def first_unfolded(h, weight, tasks):
    if h.shape[1] > tasks:
        return conv(h, weight, tasks)
    return unfolded(h, weight, tasks).contiguous(memory_format=torch.channels_last)


def half(h, weight, tasks):
    """The three maps in bfloat16, between casts."""
    return conv(h.bfloat16(), weight.bfloat16(), tasks).float()


def by_var_mean(h, shift):
    variance, mean = torch.var_mean(h, (0, 2, 3), correction=0, keepdim=True)
    return F.relu((h - mean) * torch.rsqrt(variance + 1e-5) + shift.view(1, -1, 1, 1))


def by_means(h, shift):
    centred = h - h.mean((0, 2, 3), keepdim=True)
    variance = centred.square().mean((0, 2, 3), keepdim=True)
    return F.relu(centred * torch.rsqrt(variance + 1e-5) + shift.view(1, -1, 1, 1))


def network(convolve, normalise, memory_format=torch.channels_last):
    def apply(params, x, context=None):
        tasks, queries = x.shape[:2]
        h = x.transpose(0, 1).flatten(1, 2).contiguous(memory_format=memory_format)
        for layer in range(1, 5):
            weight = params[f"conv{layer}.weight"].flatten(0, 1).contiguous(memory_format=memory_format)
            h = normalise(convolve(h, weight, tasks), params[f"conv{layer}.shift"].reshape(-1))
        h = h.mean((2, 3)).view(queries, tasks, -1).transpose(0, 1)
        return torch.baddbmm(params["head.bias"].unsqueeze(1), h, params["head.weight"])

    return cross_entropy(apply)


PLAIN = torch.contiguous_format
FORMULATIONS = {
    "grouped convolution, `var_mean` (as it was)": network(grouped, by_var_mean, PLAIN),
    "grouped convolution, means": network(grouped, by_means, PLAIN),
    "the same, channels last": network(grouped, by_means),
    "three bilinear maps, means, channels last": network(conv, by_means),
    "three bilinear maps, batch norm by hand": network(conv, batch_norm_relu, PLAIN),
    "**the same, channels last (kept)**": network(conv, batch_norm_relu),
    "the kept one, first layer unfolded": network(first_unfolded, batch_norm_relu),
    "every layer unfolded, batched matmul": network(unfolded, batch_norm_relu, PLAIN),
    "the kept one, convolutions in bfloat16": network(half, batch_norm_relu),
}
KEPT = "**the same, channels last (kept)**"


def contestants(problem):
    theta, batch, alpha = problem.model.theta, problem.batch, problem.alpha
    for name, loss in FORMULATIONS.items():
        yield name, lambda k, loss=loss: maml(loss, theta, batch, alpha, k).gradient
    loss = FORMULATIONS[KEPT]
    yield (
        "the kept one, forward over reverse",
        lambda k: maml(loss, theta, batch, alpha, k, "forward-over-reverse").gradient,
    )

    def in_chunks(k):
        parts = [TaskBatch(*(t[i : i + 8] for t in batch)) for i in range(0, len(batch.support_x), 8)]
        found = [maml(loss, theta, part, alpha, k).gradient for part in parts]
        return {name: sum(g[name] for g in found) / len(found) for name in theta}

    yield "the kept one, 8 tasks at a time", in_chunks


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.threads :])
    problem, found = pictures(), {}
    calls = dict(contestants(problem))
    for steps in (1, 5):
        reference = calls[KEPT](steps)
        times = {name: [] for name in calls}
        while waiting := [n for n, t in times.items() if len(t) < 4 or sum(t) < args.seconds]:
            for name in waiting:
                g, turn = calls[name](steps), []
                square = sum(((g[n] - reference[n]) ** 2).sum().item() for n in g)
                error = (square / sum((reference[n] ** 2).sum().item() for n in g)) ** 0.5
                found.setdefault(name, {})[f"error, K = {steps}"] = error
                while sum(turn) < TURN:
                    started = time.perf_counter()
                    calls[name](steps)
                    turn.append(time.perf_counter() - started)
                times[name] += turn
        for name, t in times.items():
            row = found[name]
            row[f"ms, K = {steps}"] = float(np.median(t)) * 1e3
            print(f"K={steps} {name:45s} {row[f'ms, K = {steps}']:8.1f} ms  error {row[f'error, K = {steps}']:.1e}")
    gigaflop, speed = arithmetic(problem), matrix_speed()
    stored = {"formulations": found, "GFLOP per inner step": gigaflop, "GFLOP/s": speed}
    stored["provenance"] = provenance(0, time.perf_counter() - STARTED, "cpu")
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_into_readme(stored)


def arithmetic(problem):
    """Operations of the convolutions, in 10⁹ per inner step; as many queries as support pictures.

    In units of one forward pass: two gradients at 3 (the layer itself, by its weights, by its input) and a
    Hessian-vector product at 6. The first layer needs no gradient by its input: 2, 2 and 2.
    """
    filters, pictures = problem.model.theta["conv1.shift"].shape[0], problem.batch.support_y.numel()
    total, side = 0.0, 28
    for layer in range(1, 5):
        side = (side + 1) // 2
        channels = 1 if layer == 1 else filters
        total += 2 * side**2 * filters * channels * 9 * (6 if layer == 1 else 12)
    return total * pictures / 1e9


def matrix_speed(size=1024):
    """What this machine multiplies at best, 10⁹ operations per second in float32."""
    a, b, times = torch.rand(size, size), torch.rand(size, size), []
    for _ in range(30):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times) / 1e9


def write_into_readme(stored):
    readme = Path(__file__).with_name("README.md")
    rows = ["| formulation | K = 1, ms | K = 5, ms | difference from the kept one, K = 1 |", "|---|---|---|---|"]
    for name, f in stored["formulations"].items():
        rows.append(f"| {name} | {f['ms, K = 1']:.0f} | {f['ms, K = 5']:.0f} | {f['error, K = 1']:.0e} |")
    work, speed, where = stored["GFLOP per inner step"], stored["GFLOP/s"], stored["provenance"]
    rows += [
        "",
        f"Measured in turns in one process: {where['hardware']}, torch {where['versions']['torch']}, {where['date']}.",
        "",
        f"**The floor.** The convolutions of K = 1, query pass included, are {work:.1f} GFLOP, and this machine "
        f"multiplies large matrices at {speed:.0f} GFLOP/s: {work / speed * 1e3:.0f} ms at best.",
        "",
    ]
    text = readme.read_text(encoding="utf-8")
    start, end = (
        text.index("<!-- formulations -->\n") + len("<!-- formulations -->\n"),
        text.index("<!-- /formulations -->"),
    )
    readme.write_text(text[:start] + "\n".join(rows) + text[end:], encoding="utf-8")


if __name__ == "__main__":
    main()
