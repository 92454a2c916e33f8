"""Every figure of the series, one function each: `nb05_sine_regression.py` draws those of notebook 05, and so on.

08 has a second module, for stored results. `style.py` has the tools they share.
"""
