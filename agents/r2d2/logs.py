"""Ray's own log messages."""

import logging


def quiet() -> None:
    """Show Ray's errors only.

    What it warns of is RLlib's own use of itself, which no user of this package can change; exceptions still come
    through.
    """
    for name in ("ray", "ray.rllib", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Says so again at each request that a dead runner does not answer; how many are at work is in the training's log.
    logging.getLogger("ray.rllib.utils.actor_manager").setLevel(logging.CRITICAL)
