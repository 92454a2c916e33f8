"""Figures of notebook 07: few-shot classification."""

__all__: list[str] = []
