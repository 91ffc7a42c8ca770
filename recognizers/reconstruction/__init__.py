"""Least-squares reconstruction of pruned networks: REAP, neuron unification, and what criteria need of them."""
