"""Exercises of notebook 04: first-order approximations."""

from maml_edu.exercises import Exercise

EXERCISES: list[Exercise] = []
