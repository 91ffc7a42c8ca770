"""Policies: the R2D2 controller and every baseline; training, comparison, reports and the command line."""
