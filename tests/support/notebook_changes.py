"""Which constants and cells a student may change: the table that test_notebook_changes.py runs."""

CHANGES: dict[str, list[dict[str, str]]] = {
    "00_start_here": [
        {"AMPLITUDE": "8.0", "PHASE": "-1.0", "SHOTS": "25", "STEPS": "12", "SEED": "14", "PHASES": "(1.0, 1.0)"},
        {"AMPLITUDE": "0.5", "SHOTS": "1", "STEPS": "0", "PHASES": "(0.0, math.pi)"},
    ],
    "01_tasks_and_the_bilevel_objective": [
        {"AMPLITUDE": "(1.0, 2.0)", "SIZES": "(1, 10, 1)", "ALPHA_PLANE": "0.4"},
        {"AMPLITUDE": "(3.0, 3.0)", "PHASE": "(1.0, 1.0)", "ACTIVATION": '"softplus"', "STEPS": "1"},
        {"PHASE": "(0.0, 2 * math.pi)", "SHOTS": "20", "STEPS": "3", "ALPHA_PLANE": "0.02"},
        {"PHASE": "(-math.pi / 2, math.pi / 2)", "SHOTS": "1", "ALPHA": "0.02"},
        {"SHOTS": "2", "ALPHA": "0.001", "SIZES": "(1, 100, 100, 1)"},
        {"ALPHA": "0.5", "STEPS": "5", "ACTIVATION": '"tanh"', "ALPHA_PLANE": "2.0"},
        {
            "cell:nb01-model": "from torch import nn\n"
            "model = from_module(nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1)))\n"
            "loss = mse(model.apply)",
        },
    ],
    "02_differentiating_a_gradient_step": [
        {"ALPHA": "0.8", "SIZES": "(1, 2, 1)", "START": "(1.6, math.pi / 2)", "RADIUS": "0.5"},
        {"ALPHA": "0.05", "CENTRE": "3.0", "H12": "-0.8", "ACTIVATION": '"softplus"', "ALPHA_PLANE": "0.02"},
        {"CURVATURE": "4.0", "H11": "6.0", "THETA": "4.0", "H22": "3.0", "ACTIVATION": '"sigmoid"'},
        {"CURVATURE": "-1.0", "H12": "0.0", "SIZES": "(1, 3, 3, 1)", "PRODUCTS": "(0.1, 0.9, 1.9)"},
        {"THETA": "1.0", "START_AB": "(1.0, 1.0)", "SHOTS": "1", "PRODUCTS": "(1.0, 2.0, 2.5)", "QUERY_CENTRE": "0.0"},
        {
            "QUERY_MINIMUM": "(-1.0, -1.0)",
            "PLACES": "(-1.0, 0.3, 1.2)",
            "ALPHAS": "[0.0, 0.38, 0.39]",
            "ALPHA_PLANE": "0.2",
            "TASK": "(1.0, 0.3)",
            "cell:nb02-network-model": "from torch import nn\n"
            "model = from_module(nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)))",
        },
    ],
    "03_hessian_vector_products": [
        {"SIZES": "(1, 20, 1)", "ACTIVATION": '"softplus"', "STEPS": "2"},
        {"SHOTS": "2", "ALPHA": "0.2", "STEPS": "1"},
        {"SHOTS": "20", "STEPS": "8", "SIZES": "(1, 8, 8, 8, 1)", "KINK_DISTANCE": "1e-4"},
        {"ACTIVATION": '"relu"', "ALPHA": "0.01", "MANY_STEPS": "[1, 100]"},
        {
            "cell:nb03-model": "from torch import nn\n"
            "net = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()\n"
            "model = from_module(net)\nloss, theta = mse(model.apply), model.theta",
        },
    ],
    "05_sine_regression": [
        {"AMPLITUDE": "(0.1, 1.0)", "PHASE": "(0.0, 2 * math.pi)", "SHOTS": "5", "DRAW": "6"},
        {"ALPHA": "0.03", "STEPS": "5", "SEEDS": "(3, 4, 5)", "SLOPE": "-1.0"},
        {"SIZES": "(1, 20, 20, 1)", "ACTIVATION": '"tanh"', "TEST_SHOTS": "20", "METHOD": "fomaml"},
        {
            "SHOWN_AMPLITUDE": "0.5",
            "SHOWN_PHASE": "3.0",
            "SUPPORT_X": "[-2.0, 2.0]",
            "STEPS": "2",
            "SLIDER_STEPS": "[0, 1, 2, 5, 10, 50]",
            "SLOPE": "0.1",
        },
        {
            "SHOTS": "20",
            "cell:nb05-model": "from torch import nn\n"
            "sines = SineTasks(AMPLITUDE, PHASE)\n"
            "def make_model(seed, inputs=1):\n"
            "    torch.manual_seed(seed)\n"
            "    return from_module(nn.Sequential(nn.Linear(inputs, 20), nn.Tanh(), nn.Linear(20, 1)))",
        },
    ],
    "06_is_it_really_maml": [
        {"STEPS": "1", "ALPHA": "0.01", "SHOTS": "5", "MORE_STEPS": "1"},
        {"STEPS": "3", "ACTIVATION": '"relu"', "SIZES": "(1, 40, 40, 1)", "MORE_STEPS": "5"},
        {
            "cell:nb06-model": "net = nn.Sequential(nn.Linear(1, 9), nn.Tanh(), nn.Linear(9, 1))\n"
            "model = from_module(net.double())\nloss = mse(model.apply)",
            "AMPLITUDE": "(1.0, 1.0)",
            "PHASE": "(0.0, 0.5)",
            "TASKS": "10",
        },
    ],
    "07_few_shot_classification": [
        {"DATASET": '"glyphs"', "STEPS": "3", "ALPHA": "2.0"},
        {"WAYS": "20", "QUERIES": "1", "FILTERS": "8", "METHOD": "reptile"},
        {"WAYS": "2", "SHOTS": "5", "QUERIES": "10", "METHOD": "fomaml"},
        {
            "cell:nb07-model": "net07 = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, stride=4), "
            "torch.nn.BatchNorm2d(8, track_running_stats=False), torch.nn.ReLU(), torch.nn.Flatten(), "
            "torch.nn.Linear(392, WAYS))\n"
            "model = from_module(net07)\nloss = cross_entropy(model.apply)",
        },
        {
            "cell:nb07-model": "model = from_module(torch.nn.Sequential(torch.nn.Flatten(), "
            "torch.nn.Linear(784, 16), torch.nn.ReLU(), torch.nn.Linear(16, WAYS)))\n"
            "loss = cross_entropy(model.apply)",
            "WAYS": "3",
        },
    ],
    "08_omniglot": [
        {"DATASET": '"glyphs"', "METHOD": "reptile", "STEPS": "3"},
        {"SHOTS": "5", "QUERIES": "1", "ALPHA": "2.0", "FILTERS": "8"},
        {"METHOD": "fomaml", "WAYS": "3", "HEADLINE": "6", "SEED": "1"},
        {"WAYS": "20", "TASKS": "2", "FILTERS": "8", "STEPS": "1"},
        {"ALPHA": "0.1", "QUERIES": "10", "SHOTS": "2", "FILTERS": "16", "HEADLINE": "1"},
        {
            "cell:nb08-model": "from torch import nn\n"
            "model = from_module(nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.Tanh(), nn.Linear(32, WAYS)))\n"
            "loss = cross_entropy(model.apply)\n"
            "LEARN_ALPHA, start = True, dict.fromkeys(model.theta, ALPHA)\n"
            "alpha = [start] * STEPS",
            "WAYS": "6",
        },
    ],
    "14_scaling_out": [
        {
            "SIZES": "(1, 20, 1)",
            "TASKS": "4",
            "SHOTS": "5",
            "STEPS": "1",
            "FILTERS": "16",
            "EVERY": "7",
            "MEMORY_STEPS": "[2, 3, 5]",
            "GPU_RATE": "1e14",
            "BANDWIDTH": "1e9",
            "PAPER_TASKS": "64",
            "PER_WORKER": "1",
            "PAPER_STEPS": "1",
            "GPU_MEMORY": "24e9",
        },
        {
            "cell:nb14-model": "from torch import nn\n"
            "model = from_module(nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1)))\n"
            "dense = mlp_network((1, 20, 1))\nloss = mse(model.apply)\n"
            "batch = SineTasks().sample(TASKS, SHOTS)",
            "STEPS": "10",
            "LAUNCH": "2e-6",
            "GPU_RATE": "1e12",
            "SHARDS": "8",
            "NOISE_STEPS": "3",
            "SPREAD": "0.3",
            "LATENCY": "1e-4",
        },
    ],
    "04_first_order_approximations": [
        {
            "CURVATURES": "(2.0, 2.0)",
            "TOY_STEPS": "10",
            "TOY_ALPHAS": "[0.0, 0.3, 0.8]",
            "HAND_ALPHA": "0.4",
            "ORBIT_ALPHAS": "[0.0, 0.3, 0.4]",
            "HERE": "(3.5, 0.2)",
        },
        {
            "CENTRES": "(0.0, 5.0)",
            "STEPS": "2",
            "TOY_STEPS": "1",
            "LARGE_ALPHA": "0.6",
            "START": "-2.0",
            "ALPHAS": "[0.3, 0.4, 0.6]",
            "SMALL_ALPHAS": "(0.1, 0.2, 0.4)",
            "SINE_ALPHA": "1e-4",
        },
        {
            "CURVATURES": "(0.5, 5.0)",
            "CENTRES": "(1.0, 1.0)",
            "LARGE_ALPHA": "0.45",
            "START": "2.1",
            "TOY_ALPHAS": "[0.65]",
            "HAND_ALPHA": "0.1",
            "PLANE_ALPHA": "0.05",
        },
        {
            "cell:nb04-13": "from maml_edu.classroom.exercises import registry\n"
            'my_reptile = registry()["4.1"].reference\ncheck("4.1", my_reptile)',
            "cell:nb04-82": 'my_truncated_maml = registry()["4.4"].reference\ncheck("4.4", my_truncated_maml)',
            "cell:nb04-46": 'signs = ("Opposite", "SAME", "opposite")\ncheck("4.3", signs)',
        },
    ],
    "11_implicit_gradients": [
        {
            "TOY_STRENGTH": "10.0",
            "TOY_RATES": "(0.5, 1.9)",
            "MOVE": "(-0.5, 0.5)",
            "STRENGTH": "10.0",
            "ALPHA": "0.05",
            "PLAIN_ALPHA": "0.6",
            "SPREADS": "(2.0, 1e5)",
            "MOST": "5",
            "CURVATURE": "5.0",
            "FACTORS": "(4.0, 2.0, 1.5, 1.001, 0.9)",
            "TASKS": "1",
            "TRAIN_STEPS": "5",
            "HF_STEPS": "1",
            "NUDGE": "1e-6",
        },
        {
            "SHOTS": "3",
            "STRENGTH": "0.5",
            "INNER_STEPS": "(1, 3, 9, 27)",
            "STEPS_TRIED": "(1, 2, 100)",
            "TRAIN_STRENGTH": "0.5",
            "TRAIN_ALPHA": "0.01",
            "CG_STEPS": "2",
            "cell:nb11-model": "from torch import nn\n"
            "net = nn.Sequential(nn.Linear(1, 10), nn.ReLU(), nn.Linear(10, 1)).double()\n"
            "model = from_module(net)\nloss, theta = mse(model.apply), model.theta\n"
            "sine_tasks = SineTasks(amplitude=(1.0, 1.0))\n"
            "batch = sine_tasks.sample(TASKS, SHOTS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)\n"
            "SOLVED, PRODUCTS = 40, 10",
        },
    ],
    "10_better_inner_loops": [
        {
            "STEPS": "1",
            "ALPHA": "0.3",
            "SIZES": "(1, 5, 5, 1)",
            "SHOTS": "20",
            "START": "0.03",
            "RATE_LR": "1e-2",
            "MOMENTUM": "0.0",
            "EPSILON": "1e-8",
            "METHOD": '"adam"',
            "INNER_ALPHA": "0.03",
            "LONG_ALPHA": "0.02",
            "EDGE_FACTORS": "(1.0, 3.0)",
        },
        {
            "STEPS": "6",
            "MOMENTUM": "0.5",
            "EPSILONS": "(1e-4, 1e-1)",
            "METHOD": '"maml"',
            "GAINS": "(1.0, 2.0)",
            "WEIGHTS_SEED": "1",
            "cell:nb10-model": "from torch import nn\n"
            "model = from_module(nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double())\n"
            "loss, theta = mse(model.apply), model.theta\n"
            "batch = SineTasks().sample(3, SHOTS, dtype=torch.float64)\n"
            "support, query, T = batch[:2], batch[2:], 3",
        },
    ],
    "13_reinforcement_learning": [
        {
            "HORIZON": "30",
            "HALF_WIDTH": "1.0",
            "HIDDEN": "(20,)",
            "ACTIVATION": '"tanh"',
            "STD": "0.1",
            "SIGMA": "0.2",
            "SAMPLES": "5",
            "DISTANCE": "3.0",
            "ALPHA": "1.0",
            "META_ALPHA": "5.0",
            "BANDIT_ALPHA": "0.8",
            "FAILURE": "(5.0, 5.0)",
        },
        {
            "cell:nb13-model": "from torch import nn\n"
            "navigation = Navigation(horizon=HORIZON, half_width=HALF_WIDTH, clip=None)\n"
            "net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))\n"
            "policy = gaussian_policy(mean=from_module(net), std=STD)\n"
            "meta = PolicyGradient(navigation, policy.apply)",
            "TASKS": "3",
            "TRAJECTORIES": "2",
            "PULL": "False",
            "HORIZON": "10",
            "BATCHES": "3",
        },
    ],
    "12_other_families": [
        {
            "WAYS": "3",
            "SHOTS": "2",
            "STEPS": "2",
            "ALPHA": "0.1",
            "TASKS": "4",
            "SEED": "1",
            "POINTS": "5",
            "AMPLITUDE": "(1.0, 2.0)",
            "PROCESS_SIZES": "(1, 20, 20, 2)",
            "MORE_WAYS": "(2, 15)",
            "OUTSIDE": "(0.1, 5.0)",
            "FAR_STEPS": "3",
            "cell:nb12-model": 'HEAD, SHIFTS = ("w2", "b2"), ("b1",)\n\n\n'
            "def network(filters, dtype=torch.float32, ways=WAYS):\n"
            "    start = torch.Generator().manual_seed(SEED)\n"
            '    return mlp((784, 2 * filters, ways), "tanh", start, dtype)',
        },
        {"DATASET": '"glyphs"', "FILTERS": "8", "SHOTS": "5", "SINE_ALPHA": "0.0005"},
    ],
    "09_what_did_it_learn": [
        {
            "SHOTS": "5",
            "AMPLITUDE": "(1.0, 1.0)",
            "PHASE": "(math.pi, 2 * math.pi)",
            "TASKS": "20",
            "DATASET": '"glyphs"',
            "SUPPORT_SHOTS": "5",
            "STEPS": "1",
            "INNER": "1",
            "CURVATURE": "(1.0, 0.01)",
            "HIDDEN": "2",
            "MARKS": "(0, 1, 10)",
            "SHOT_COUNTS": "(2, 10)",
            "cell:nb09-model": "from torch import nn\n"
            "model = from_module(nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1)))\n"
            "model_loss = mse(model.apply)\n"
            "body = body_names(model.theta)\n"
            "def ten_points(tasks, generator):\n"
            "    return sine_tasks.sample(tasks, 10, 50, generator=generator)",
        },
        {
            "ALPHAS": "(0.1,)",
            "TRAIN_STEPS": "3",
            "HEAD_ALPHA": "0.1",
            "INNER": "10",
            "LINEAR_ALPHA": "0.2",
            "TUNING": "(0.01,)",
            "SHOTS": "50",
        },
    ],
}
"""Changes to try, by notebook: {"02_differentiating_a_gradient_step": [{"ALPHA": "0.9"}, {"STEPS": "3"}]}.

Each dict is one run. `"NAME": "source"` replaces the value in the one line that begins with `NAME = `;
`"cell:ID": "source"` replaces all of the cell with that id.
"""
