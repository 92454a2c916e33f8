"""Train MAML and ANIL alike on Omniglot, with one fixed α for both, for notebook 09: does the body have to adapt?

    python benchmarks/feature_reuse.py maml
    python benchmarks/feature_reuse.py anil

Writes omniglot_5way_1shot_METHOD_fixed, as .pt to maml_edu/checkpoints/ and as .json to notebooks/results/.
About four minutes of processor time for MAML, two for ANIL.
"""

import sys
import time
from pathlib import Path

import torch

from maml_edu.data.episodes import Episodes, characters, split
from maml_edu.electives.feature_reuse import anil, body_names, freeze
from maml_edu.evaluation import evaluate
from maml_edu.experiments.results import provenance, result, write_result
from maml_edu.meta_gradient import maml
from maml_edu.models import conv4, cross_entropy
from maml_edu.training import save_checkpoint, train

ROOT = Path(__file__).resolve().parents[1]
WAYS, SHOTS, QUERIES, FILTERS, ALPHA, STEPS, TASKS, LR = 5, 1, 3, 16, 1.0, 2, 8, 3e-3
TEST_TASKS, TEST_QUERIES = 600, 5


def main(name, iterations=5000, seed=0):
    torch.set_num_threads(1)
    model = conv4(WAYS, FILTERS, generator=torch.Generator().manual_seed(seed))
    loss = cross_entropy(model.apply)
    method = {"maml": maml, "anil": anil(model.apply, cross_entropy)}[name]
    data = characters("omniglot")
    training, _, test = split(data, "finn")
    began = time.process_time()
    trained = train(
        model,
        loss,
        Episodes(training, WAYS, SHOTS, QUERIES).sample,
        method,
        iterations=iterations,
        tasks=TASKS,
        alpha=ALPHA,
        steps=STEPS,
        lr=LR,
        schedule="cosine",
        generator=torch.Generator().manual_seed(seed),
        progress=name,
    )
    seconds = time.process_time() - began
    alpha = freeze(ALPHA, model.theta, body_names(model.theta)) if name == "anil" else ALPHA
    sampler, generator = Episodes(test, WAYS, SHOTS, TEST_QUERIES).sample, torch.Generator().manual_seed(100 + seed)
    model = model._replace(theta=trained.theta)
    scores = evaluate(model, loss, sampler, alpha, STEPS, TEST_TASKS, "accuracy", generator=generator)
    protocol = {
        "split": "finn",
        "ways": WAYS,
        "shots": SHOTS,
        "test_shots": SHOTS,
        "queries": QUERIES,
        "test_queries": TEST_QUERIES,
        "tasks": TEST_TASKS,
        "rotations": True,
        "resize": "105×105 to 28×28, LANCZOS on grey levels, ink = 1",
        "loss": "mean cross-entropy",
        "filters": FILTERS,
        "meta_batch": TASKS,
        "iterations": iterations,
        "outer": f"Adam, lr {LR}, cosine",
        "alpha": ALPHA,
        "alpha_learned": False,
        "alpha_on_the_body": 0.0 if name == "anil" else ALPHA,
        "inner_steps_train": STEPS,
        "inner_steps": STEPS,
        "statistics": "transductive",
    }
    about = {"experiment": f"omniglot {WAYS}-way {SHOTS}-shot", "method": name, "protocol": protocol}
    stem = f"omniglot_{WAYS}way_{SHOTS}shot_{name}_fixed"
    found = result(**about, scores=scores, provenance=provenance(seed, seconds))
    write_result(ROOT / "notebooks" / "results" / f"{stem}.json", found)
    save_checkpoint(ROOT / "maml_edu" / "checkpoints" / f"{stem}.pt", trained, **about)
    print(f"{name}: {100 * scores[STEPS].mean:.1f} ± {100 * scores[STEPS].half_width:.1f} % in {seconds:.0f} s")


if __name__ == "__main__":
    if sys.argv[1:] not in (["maml"], ["anil"]):
        raise SystemExit(__doc__)
    main(sys.argv[1])
