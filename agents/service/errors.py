"""Errors of the service that stand for an HTTP status."""

from recognizers.errors import ZeroOutError


class ServiceError(ZeroOutError):
    """A request that cannot be met."""

    status = 422


class UnauthorizedError(ServiceError):
    """No token, or a wrong one."""

    status = 401


class NotFoundError(ServiceError):
    """There is no such thing, or it belongs to somebody else."""

    status = 404


class ConflictError(ServiceError):
    """Not possible in the present state."""

    status = 409


class TooLargeError(ServiceError):
    """A body beyond the limit."""

    status = 413


class TooManyError(ServiceError):
    """A limit of a token is reached; later it may work."""

    status = 429
