"""Two small exercises with their right, wrong and unwritten answers, for the tests of what checks them."""

import torch

from maml_edu.classroom.exercises import Exercise


def scaled_step(theta, alpha):
    """θ − α·θ, for every parameter."""
    return {name: value - alpha * value for name, value in theta.items()}


def scaled_step_cases():
    generator = torch.Generator().manual_seed(0)

    def theta():
        return {name: torch.randn(2, 3, generator=generator, dtype=torch.float64) for name in ("w", "b")}

    return [(theta(), 0.1), (theta(), 0.5)]


def wrong_sign(theta, alpha):
    return {name: value + alpha * value for name, value in theta.items()}


def one_parameter(theta, alpha):
    return {"w": theta["w"] - alpha * theta["w"]}


def steps_needed():
    return 3


STEP = Exercise(
    number="3.2",
    title="a step",
    reference=scaled_step,
    mistakes={"The sign of the step is wrong.": wrong_sign, "Some parameters are left out.": one_parameter},
    hints=("Look at the sign.", "θ − α·θ."),
    cases=scaled_step_cases,
    remark="This is weight decay.",
)
PREDICTION = Exercise(
    number="1.1",
    title="how many",
    reference=steps_needed,
    mistakes={"That counts the first point too.": lambda: 4},
    hints=("Count.",),
)


def stub_pass(theta, alpha):
    pass


def stub_dots(theta, alpha):
    return ...


def stub_raises(theta, alpha):
    raise NotImplementedError("yours to write")


def stub_computes(theta, alpha):
    gradient = ...
    return theta["w"] - alpha * gradient


def stub_partly(theta, alpha):
    return {"w": theta["w"], "b": ...}


STUBS = [None, ..., stub_pass, stub_dots, stub_raises, stub_computes, stub_partly]
TOYS = {exercise.number: exercise for exercise in (PREDICTION, STEP)}
