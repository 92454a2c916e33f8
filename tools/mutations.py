"""Does the test suite notice when the package is wrong? One line is made wrong at a time, and a test has to fail.

Every entry of TABLE is a plausible mistake: a sign, an order, an α in the wrong place, a state that is not restored.

    python tools/mutations.py               all of them: a few minutes
    python tools/mutations.py 4 17 layers   some of them, by number or by a piece of their file or description
    python tools/mutations.py --list        what there is, and whether all of it still fits the source

Your files are never touched: what git tracks, and what is new and not ignored, is copied into temporary folders, one
for each of the -j runs at a time, and changes happen there. The tests run unchanged first, so that one which fails
anyway is not taken for a catch. The exit status is 1 if a mutation survives (a test is missing, or the change is no
mistake) or does not fit the source any longer (a line has changed: let the table follow).
"""

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PYTEST = "-m pytest -x -q --no-header --tb=no -rfE -p no:nbval -p no:cacheprovider -o addopts=".split()
LONGEST = 300  # seconds; a test that would wait for ever has noticed something, too


class Mutation(NamedTuple):
    """In `file`, `old`, which stands there once, becomes `new`, and `tests` (what pytest is given) are to notice it."""

    file: str
    tests: str
    breaks: str
    old: str
    new: str


# fmt: off
# (file in maml_edu, what to run of tests) -> (what breaks, old, new)
TABLE = {
    # ------------------------------------------------------------ the heart
    ("meta_gradient.py", "test_meta_gradient.py"): [
        ("query gradients added at the wrong step", "query_gradients[j])", "query_gradients[j - 1])"),
        ("Hessian terms with the wrong sign", "alpha=c) for name in v}", "alpha=-c) for name in v}"),
        ("steps pulled back in the wrong order", "in reversed(range(len(alphas))):", "in range(len(alphas)):"),
        ("each Hessian one point too late", "(loss, path[j], x, y, u", "(loss, path[j + 1], x, y, u"),
        ("α twice for one number", "hv = product(u)", "hv = product({name: c * t for name, t in u.items()})"),
        ("the first steps' graphs taken for the last ones'", "if len(alphas) - j <= remember:", "if j < remember:"),
    ],
    ("meta_gradient.py", "test_step_sizes.py"): [
        ("α lost where a step is remembered", "hv = product(u)", "hv = product(v)"),
        ("α lost where nothing is remembered", "x, y, u, route)", "x, y, v, route)"),
        ("∂/∂α in reverse", "v, collect_alpha_gradient(alpha, shares[::-1]", "v, collect_alpha_gradient(alpha, shares"),
        ("first order: ∂/∂α in reverse", "for j in reversed(range(steps)):", "for j in range(steps):"),
    ],
    ("hessian_vector.py", "test_meta_gradient.py"): [
        ("the query gradient at θ", "(loss, path[-1], x, y)", "(loss, path[0], x, y)"),
        ("the inner loss a mean over tasks", "torch.ones_like(values)", "torch.full_like(values, 1 / len(values))"),
        ("a mean over tasks accepted as loss", "if values.shape != x.shape[:1]:", "if values.dim() > 1:"),
    ],
    ("hessian_vector.py", "test_multi_step.py"): [
        ("query gradients one point too early", "(loss, path[j], x, y)", "(loss, path[j - 1], x, y)"),
    ],
    ("hessian_vector.py", "test_hessian_vector_products.py"): [
        ("a central difference over ε, not 2ε", "norm / (2 * epsilon)", "norm / epsilon"),
    ],
    ("hessian_vector.py", "test_cost.py::test_first_order_methods_store_parameters_and_gradients"): [
        ("a graph behind every gradient", "create_graph=False)", "create_graph=True)"),
    ],
    ("step_sizes.py", "test_step_sizes.py"): [
        ("an inner step uphill", "torch.sub(p, g[name], alpha=a)", "torch.add(p, g[name], alpha=a)"),
        ("∂/∂α with the wrong sign", ".sum() / -tasks", ".sum() / tasks"),
        ("∂/∂α of the last step only", "[share[name] for share in shares]", "[share[name] for share in shares[-1:]]"),
        ("∂/∂α given to the wrong steps", "in zip(alpha, shares)]", "in zip(alpha, reversed(shares))]"),
    ],
    ("tasks.py", "test_meta_gradient.py"): [
        ("a sum over tasks", "{name: t.mean(0) for name, t in v", "{name: t.sum(0) for name, t in v"),
    ],
    ("tasks.py", "test_tasks.py"): [
        ("infinity passes", "not torch.isfinite(tensor).all()", "torch.isnan(tensor).any()"),
        ("query classes that are never shown pass", "not set(q) <= set(s)", "not set(q) & set(s)"),
    ],
    # ------------------------------------------------------------ models
    ("models/convolutional.py", "test_batch_norm_statistics.py"): [
        ("tasks mixed with examples", ".view(queries, tasks, -1).transpose(0, 1)", ".view(tasks, queries, -1)"),
        ("the unbiased variance in batch norm", "(0, 2, 3), correction=0", "(0, 2, 3), correction=1"),
        ("queries leak into the context", "1), slice(0, context.shape[1])", "1), slice(None)"),
    ],
    ("models/torch_modules.py", "test_models.py"): [
        ("θ shares the module's memory", "p.detach().clone() for name, p in param", "p.detach() for name, p in param"),
    ],
    ("models/losses.py", "test_models.py"): [
        ("cross-entropy summed", ".view(y.shape).mean(1)", ".view(y.shape).sum(1)"),
    ],
    ("models/fast_layers.py", "test_layers.py"): [
        ("a term of batch norm's curvature lost", "(u_1 * g_1 + u_x * g_x) / n", "u_1 * g_1 / n"),
        ("ReLU lets every gradient through", "gm = _mask(gy, y)", "gm = gy"),
        ("a tangent with the wrong sign", "t = t + _curvature(", "t = t - _curvature("),
    ],
    # ------------------------------------------------------------ training
    ("training.py", "test_interruption.py"): [
        ("a cut iteration's tasks lost", "checkpoint(drawn, settings)", "checkpoint(generator.get_state(), settings)"),
    ],
    ("training.py", "test_training.py"): [
        ("multi-step weights that do not add up to 1", "1 - (steps - 1) * earlier", "1 - steps * earlier"),
        ("an infinite loss trains on", "not math.isfinite(recent)", "math.isnan(recent)"),
    ],
    ("engine/training_state.py", "test_interruption.py"): [
        ("the generator not restored", "generator.set_state(drawn)", "pass"),
        ("the state of Adam not restored", "self.adam.load_state_dict(adam)", "pass"),
        ("learned step sizes not restored", "size.copy_(", "torch.as_tensor("),
    ],
    ("engine/training_state.py", "test_training.py"): [
        ("entries clipped, not the norm", "utils.clip_grad_norm_(", "utils.clip_grad_value_("),
        ("the model given is changed", "p.detach().clone() for name, p in theta", "p.detach() for name, p in theta"),
        ("another run resumed", "if name not in stored or stored[name] != value:", "if name not in stored:"),
    ],
    ("engine/checkpoint_files.py", "test_checkpoint_files.py"): [
        ("another model's shapes accepted", "same_model(path, checkpoint.trained.theta, model.theta)", "pass"),
    ],
    ("data/tensor_files.py", "test_checkpoint_files.py"): [
        ("a checkpoint not atomic", "write_atomically(path, buffer", "Path(path).write_bytes(buffer"),
        ("a checkpoint may run code", "sorted(named - _KNOWN)", "[] and named"),
        ("a damaged checkpoint read", "if part := archive.testzip():", "if part := None:"),
    ],
    ("evaluation.py", "test_evaluation.py"): [
        ("a 90 % interval", "1.96 * values", "1.645 * values"),
        ("spread by n, not n − 1", "values.std()", "values.std(correction=0)"),
        ("NaN is no divergence", "~(losses[step] <= limit)", "losses[step] > limit"),
        ("the query itself left out", "context=torch.cat([batch.support_x, q], 1)", "context=batch.support_x"),
    ],
    ("engine/distributed.py", "test_distributed.py::test_two_ranks_give_the_meta_gradient_of_one_process"): [
        ("unequal shares count the same", "own = result.query_loss.shape[0] / tasks", "own = 1 / size()"),
    ],
    ("engine/compilation.py", "test_compiled.py::test_one_program_per_shape_and_number"): [
        ("a program used for other shapes", "(t.shape, t.dtype, t.device) for", "(t.dtype, t.device) for"),
    ],
    ("data/omniglot_files.py", "test_omniglot.py::test_one_changed_pixel_is_found"): [
        ("changed pixels accepted", "if digest.hexdigest() != archive.pixels:", "if not digest.hexdigest():"),
    ],
    ("data/drawn_glyphs.py", "test_glyphs.py::test_the_seed_decides"): [
        ("the seed ignored", "manual_seed(seed)", "manual_seed(0)"),
    ],
    ("data/episodes.py", "test_episodes.py"): [
        ("support drawings among the queries", "drawn[..., self.shots :]", "drawn[..., : self.queries]"),
        ("labels not permuted", ".topk(self.ways).indices", ".topk(self.ways).indices.sort().values"),
    ],
    ("data/episodes.py", "test_episodes.py::test_finn_sizes_and_nothing_shared"): [
        ("validation characters in the test set", "shuffled[train + validation :]", "shuffled[train:]"),
    ],
    # ------------------------------------------------------------ checks
    ("classroom/checks.py", "test_checks.py"): [
        ("a claim accepts NaN", "(value, (bool, np.bool_)):", "(value, (bool, np.bool_, float)):"),
        ("answer and reference share a generator", "value.clone_state()", "value"),
    ],
    ("classroom/answer_comparison.py", "test_checks.py"): [
        ("wrong shapes accepted", "if a.shape == b.shape else", "if a.size == b.size else"),
        ("NaN accepted as an answer", "(np.isnan(a) & np.isnan(b))", "np.isnan(a)"),
    ],
    ("diagnosis/checked_call.py", "test_diagnosis.py::test_verdict_and_words"): [
        ("a slight change of θ overlooked", "not torch.equal(theta[n]", "not torch.allclose(theta[n]"),
    ],
    ("diagnosis/explanation.py", "test_diagnosis.py::test_verdict_and_words"): [
        ("tolerance loosened", "TOLERANCE = 1e-6", "TOLERANCE = 0.3"),
    ],
    ("diagnosis/verdicts.py", "test_diagnosis.py::test_verdict_and_words"): [
        ("random answers overlooked", "(first.flat, second.flat) > 1e-9", "(first.flat, second.flat) > 1"),
    ],
    ("diagnosis/known_mistakes.py", "test_diagnosis.py::test_tasks_mixed"): [
        ("tasks in a chain not recognised", "before + own, path[-1]", "before + own, path[0]"),
    ],
    ("classroom/exercises/nb07_few_shot_classification.py", "test_exercises.py::test_every_mistake_is_named[7.1]"): [
        ("queries overlap", "query_x = chosen[:, shots:].", "query_x = chosen[:, : drawn - shots]."),
    ],
    # ------------------------------------------------------------ electives
    ("electives/gradient_checkpointing.py", "test_scaling.py"): [
        ("∂/∂α with the wrong sign", "alpha, shares, -1)", "alpha, shares, 1)"),
    ],
    ("electives/implicit.py", "test_implicit.py"): [
        ("H·λ for H/λ", "hp[name] / strength", "hp[name] * strength"),
        ("the proximal term's share lost", "gathered[name] + strength * u[name]", "gathered[name]"),
        ("directions that are not conjugate", "now / rr, 0)", "rr / now, 0)"),
    ],
    ("electives/inner_optimizers.py", "test_inner_loops.py"): [
        ("momentum lost on the way back", "q = {name: momentum * t for name, t in q.items()}", "q = _zeros(q)"),
        ("bias correction of step 1", "c2 = 1 - beta1 ** (j + 1), 1 - beta2 ** (j + 1)", "c2 = 1 - beta1, 1 - beta2"),
    ],
    ("electives/policy_gradient.py", "test_policy_gradient.py"): [
        ("the last trajectories for every step", "x, y, a = data[j]", "x, y, a = data[-1]"),
        ("rewards of the past", "torch.where(ahead >= 0, discount", "torch.where(ahead <= 0, discount"),
    ],
}
# fmt: on
MUTATIONS = [Mutation(f"maml_edu/{f}", f"tests/{t}", *row) for (f, t), rows in TABLE.items() for row in rows]


def asked_for(which: list[str], number: int, m: Mutation) -> bool:
    return any(int(w) == number if w.isdigit() else w in f"{m.file}: {m.breaks}" for w in which)


def misfit(m: Mutation) -> str:
    """Why a mutation cannot be made; nothing if it can."""
    source = (ROOT / m.file).read_text(encoding="utf-8") if (ROOT / m.file).is_file() else ""
    if not (ROOT / m.tests.partition("::")[0]).is_file():
        return f"{m.file}: {m.breaks}: there is no {m.tests.partition('::')[0]}"
    if source.count(m.old) != 1:
        return f"{m.old!r} stands {source.count(m.old)} times in {m.file}; expected once"
    try:
        compile(source.replace(m.old, m.new), m.file, "exec")
    except SyntaxError as error:
        return f"{m.new!r} leaves no Python in {m.file}: {error}"
    return ""


def environment(copy: Path) -> dict[str, str]:
    # No .pyc: two changes within a second may be alike in time and size. No cache that outlives a changed program.
    own = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "MAML_EDU_CACHE": str(copy / ".cache")}
    return {**os.environ, **own}


def copied(folder: Path) -> Path:
    """The checkout, copied into `folder`; whatever runs there imports the package from there."""
    listed = subprocess.check_output(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT)
    for name in os.fsdecode(listed).split("\0"):
        if (ROOT / name).is_file():  # neither deleted nor the empty end of the list
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    ask = [sys.executable, "-c", "import maml_edu; print(maml_edu.__file__)"]
    found = subprocess.check_output(ask, cwd=folder.parent, env=environment(folder), text=True).strip()
    if not Path(found).resolve().is_relative_to(folder.resolve()):
        sys.exit(f"the package is imported from {found}, not from the copy {folder}")
    return folder


def run_tests(copy: Path, tests: list[str]) -> tuple[int, str]:
    """Pytest's exit status, and the first test that failed or else its last words."""
    command = [sys.executable, *PYTEST, *tests]
    try:
        done = subprocess.run(command, cwd=copy, env=environment(copy), capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return 1, f"no end after {LONGEST} s"
    finally:
        shutil.rmtree(copy / ".cache", ignore_errors=True)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or ["pytest said nothing"]
    failed = [line.partition(" ")[2].split(" - ")[0] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return done.returncode, failed[0] if failed else lines[-1]


def unchanged(copy: Path, tests: list[str]) -> None:
    status, said = run_tests(copy, tests) if tests else (0, "")
    if status:
        sys.exit(f"the tests do not pass where nothing is changed: {said}")


def tried(copies: queue.SimpleQueue, number: int, m: Mutation) -> bool:
    """Make one mutation in a copy that is free, run its tests, restore the file; True if they noticed."""
    copy, start = copies.get(), time.monotonic()
    source = (copy / m.file).read_text(encoding="utf-8")
    try:
        (copy / m.file).write_text(source.replace(m.old, m.new), encoding="utf-8")
        status, said = run_tests(copy, [m.tests])
    finally:
        (copy / m.file).write_text(source, encoding="utf-8")
        copies.put(copy)
    verdict = {0: "SURVIVED", 1: "caught"}.get(status, "NOT RUN")
    print(f"{verdict:8} {time.monotonic() - start:5.1f} s  {number:2} {m.file}: {m.breaks} → {said}", flush=True)
    return verdict == "caught"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", nargs="*", help="numbers, or pieces of a file or description; all if left out")
    parser.add_argument("--list", action="store_true", help="list the mutations, and check that they fit the source")
    parser.add_argument("-j", type=int, default=2, metavar="N", help="how many run at a time (2)")
    args = parser.parse_args()
    if misfits := [why for m in MUTATIONS if (why := misfit(m))]:
        print("Mutations that do not fit the source any longer:", *misfits, sep="\n")
        return 1
    chosen = [(n, m) for n, m in enumerate(MUTATIONS, start=1) if not args.which or asked_for(args.which, n, m)]
    if not chosen:
        parser.error(f"no mutation is meant by {' '.join(args.which)}; see --list")
    if args.list:
        print(*(f"{n:2} {m.file}: {m.breaks}" for n, m in chosen), f"{len(chosen)} mutations", sep="\n")
        return 0
    targets = sorted({m.tests for _, m in chosen})
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.j) as pool:
        copies, free = [copied(Path(folder, str(i))) for i in range(args.j)], queue.SimpleQueue()
        list(pool.map(unchanged, copies, [targets[i :: args.j] for i in range(args.j)]))
        for copy in copies:
            free.put(copy)
        noticed = list(pool.map(lambda one: tried(free, *one), chosen))
    print(f"{len(noticed)} mutations, {sum(noticed)} caught, {len(noticed) - sum(noticed)} survived")
    return 0 if all(noticed) else 1


if __name__ == "__main__":
    sys.exit(main())
