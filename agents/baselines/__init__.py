"""Baseline policies. Importing this package registers them."""

from agents.baselines.allocations import GlobalAllocation, UniformAllocation
from agents.baselines.evolution import EvolutionSearch
from agents.baselines.lookahead import Lookahead, LookaheadSearch
from agents.baselines.pca import PcaAllocation
from agents.baselines.pro import ProAllocation
from agents.baselines.random import RandomPolicy
from agents.baselines.search import RandomSearch

__all__ = [
    "EvolutionSearch",
    "GlobalAllocation",
    "Lookahead",
    "LookaheadSearch",
    "PcaAllocation",
    "ProAllocation",
    "RandomPolicy",
    "RandomSearch",
    "UniformAllocation",
]
