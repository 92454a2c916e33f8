"""Exercises of notebook 07: few-shot classification."""

from maml_edu.exercises import Exercise

EXERCISES: list[Exercise] = []
