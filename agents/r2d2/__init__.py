"""R2D2 (Kapturowski et al. 2019) on RLlib's new API stack, with a head that scores the units of a network."""
