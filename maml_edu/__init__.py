"""Model-agnostic meta-learning laid bare: tasks, models with explicit parameters, and the exact meta-gradient by hand.

Start with `maml_edu.meta_gradient`; the notebooks say where each module is explained.
"""
