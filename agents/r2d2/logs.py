"""Ray's own log messages."""

import logging


def quiet() -> None:
    """Show Ray's errors only.

    What it warns of is RLlib's own use of itself, which no user of this package can change; exceptions still come
    through.
    """
    for name in ("ray", "ray.rllib", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
