"""Errors of the environments."""

import gymnasium

from recognizers.errors import ZeroOutError


class InvalidActionError(ZeroOutError, gymnasium.error.InvalidAction):
    """An action that does not exist, or that the action mask rules out. The environment's state has not changed."""


class EpisodeError(ZeroOutError):
    """A recorded episode is malformed, or its replay gives other results."""
