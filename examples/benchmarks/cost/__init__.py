"""The measurements behind step_cost.py, its table and its plot."""
