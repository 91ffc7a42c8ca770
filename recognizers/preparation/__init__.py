"""Preparations: what is done to a recognizer before anything is pruned."""

from recognizers.preparation.config import AnyPreparation, FilterReplacement, PcaInit, Provenance, Start

__all__ = ["AnyPreparation", "FilterReplacement", "PcaInit", "Provenance", "Start"]
