"""Published numbers, for the tables in which ours stand beside them."""

# Sine, 5-shot MSE after 1, 5, 10 steps. Source: Finn, Abbeel & Levine (2017), Table 2.
PUBLISHED_SINE = {
    "MAML": {1: 0.67, 5: 0.38, 10: 0.35},
    "pre-trained on all tasks": {1: 2.41, 5: 2.23, 10: 2.19},
    "multi-task, 500 networks averaged": {1: 4.19, 5: 3.85, 10: 3.69},
}

# Omniglot, accuracy and half-width in %, columns 5-way 1-shot, 5-way 5-shot, 20-way 1-shot, 20-way 5-shot.
# Sources: Finn et al. (2017), Table 1; Nichol et al. (2018), Table 2; Snell et al. (2017), Table 1;
# Vinyals et al. (2016), Table 1; Li et al. (2017), Table 2; Rajeswaran et al. (2019), Table 2.
PUBLISHED_OMNIGLOT = {
    "MAML": ((98.7, 0.4), (99.9, 0.1), (95.8, 0.3), (98.9, 0.2)),
    "MAML, fully connected": ((89.7, 1.1), (97.5, 0.6), None, None),
    "FOMAML, transductive": ((98.3, 0.5), (99.2, 0.2), (89.4, 0.5), (97.9, 0.1)),
    "Reptile": ((95.39, 0.09), (98.90, 0.10), (88.14, 0.15), (96.65, 0.33)),
    "Reptile, transductive": ((97.68, 0.04), (99.48, 0.06), (89.43, 0.14), (97.12, 0.32)),
    "Matching networks": ((98.1, None), (98.9, None), (93.8, None), (98.5, None)),
    "Prototypical networks": ((98.8, None), (99.7, None), (96.0, None), (98.9, None)),
    "iMAML, gradient descent": ((99.16, 0.35), (99.67, 0.12), (94.46, 0.42), (98.69, 0.1)),
    "iMAML, Hessian-free": ((99.50, 0.26), (99.74, 0.11), (96.18, 0.36), (99.14, 0.1)),
    "Meta-SGD": ((99.53, 0.26), (99.93, 0.09), (95.9, None), (99.0, None)),
}

# A conditional neural process on Omniglot, 5-way 1-shot and 5-shot, in %, without an interval.
# Source: Garnelo et al. (2018), §4.3.
PUBLISHED_5WAY = ((95.3, None), (98.5, None))

# 2-D navigation, return after 0, 1, 2, 3 steps; the oracle is told the goal.
# Source: Finn, Abbeel & Levine (2017), experiment of §5.3.
PUBLISHED_NAVIGATION = {
    "MAML": (-40.4, -11.7, -3.3, -3.2),
    "pre-trained": (-40.8, -19.7, -11.7, -8.5),
    "random": (-82.7, -58.0, -53.8, -46.8),
    "oracle": -2.3,
}
