"""Timed comparisons: what a step of the environment costs, against what a hand-made loop spends on it."""
