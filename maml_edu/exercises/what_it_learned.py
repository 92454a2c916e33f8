"""Exercises of its notebook."""

EXERCISES = []
