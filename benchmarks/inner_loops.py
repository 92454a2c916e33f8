"""Trains the networks that notebooks 09 and 10 compare, one inner loop or one remedy each. Run by hand.

    python benchmarks/inner_loops.py runs/inner_loops                            # all of them, half an hour
    python benchmarks/inner_loops.py runs/inner_loops sine_10shot_maml_k5        # one
    python benchmarks/inner_loops.py runs/inner_loops --seed 1                   # any flag of `maml_edu train`

Every name is one `python -m maml_edu train` with the flags below, and the file of notebooks/results/ that its
result.json may become. Runs of a group have the same tasks, start, number of iterations and outer Adam. α of momentum
(0.001, 0.003, 0.01) and α and ε of Adam (0.01, 0.03; 1e-4, 1e-2, 1) were chosen by the loss after 300 iterations.
"""

import sys

from maml_edu.__main__ import main

SINE = "--dataset sine --init fan-in --shots 10 --test-shots 10"
# Comparison. Clipping keeps every way to adapt from being thrown back by one bad meta-batch.
K1 = f"{SINE} --iterations 1500 --lr 3e-3 --schedule cosine --clip 10 --steps 1 --test-steps 1"
K5 = f"{SINE} --iterations 1500 --lr 3e-3 --schedule cosine --clip 10 --steps 5 --test-steps 5"
# Trouble and remedies: ten steps of a size that is too large for this network.
K10 = f"{SINE} --iterations 500 --lr 3e-3 --steps 10 --test-steps 10"
# One fixed α for both: does the body have to adapt?
FIXED = (
    "--dataset omniglot --shots 1 --queries 3 --test-queries 5 --filters 16 --steps 2 --test-steps 2 --alpha 1 "
    "--tasks 8 --lr 3e-3 --schedule cosine --iterations 5000"
)
RUNS = {
    "omniglot_5way_1shot_maml_fixed": FIXED,
    "omniglot_5way_1shot_anil_fixed": f"{FIXED} --method anil",
    "sine_10shot_maml_k1": f"{K1} --alpha 0.01",
    "sine_10shot_metasgd_k1": f"{K1} --alpha 0.01 --method metasgd",
    "sine_10shot_maml_k5": f"{K5} --alpha 0.01",
    "sine_10shot_fomaml_k5": f"{K5} --alpha 0.01 --method fomaml",
    "sine_10shot_metasgd_k5": f"{K5} --alpha 0.01 --method metasgd",
    "sine_10shot_perstep_k5": f"{K5} --alpha 0.01 --learn-alpha --alpha-lr 1e-3",
    "sine_10shot_multistep_k5": f"{K5} --alpha 0.01 --multi-step 750",
    "sine_10shot_momentum_k5": f"{K5} --alpha 0.003 --method momentum",
    "sine_10shot_adam_k5": f"{K5} --alpha 0.03 --method adam",
    "sine_10shot_maml_k10": f"{K10} --alpha 0.03",
    "sine_10shot_fomaml_k10": f"{K10} --alpha 0.03 --method fomaml",
    "sine_10shot_truncated_k10": f"{K10} --alpha 0.03 --method truncated --keep 3",
    "sine_10shot_clip_k10": f"{K10} --alpha 0.03 --clip 1",
    "sine_10shot_outer_k10": f"{K10} --alpha 0.03 --lr 1e-3",
    "sine_10shot_multistep_k10": f"{K10} --alpha 0.03 --multi-step 400",
    "sine_10shot_perstep_k10": f"{K10} --alpha 0.03 --learn-alpha --alpha-lr 1e-3",
    "sine_10shot_smaller_k10": f"{K10} --alpha 0.01",
    "sine_10shot_smaller_k20": f"{K10} --alpha 0.015 --steps 20 --test-steps 20",
}


def train_all(out: str, asked: list[str]) -> int:
    """Train the runs that are named in `asked`, or all; the other words are flags for each. The last bad exit code."""
    flags = [word for word in asked if word not in RUNS]
    codes = [
        main(["train", *RUNS[name].split(), *flags, "--out", f"{out}/{name}"])
        for name in [word for word in asked if word in RUNS] or RUNS
    ]
    return max(codes)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    sys.exit(train_all(sys.argv[1], sys.argv[2:]))
