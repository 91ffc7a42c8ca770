"""Settings of the service."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

MEBIBYTE = 2**20
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Limits(BaseModel):
    """What a client may ask for. Those that count do so per token."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    requests_per_minute: int = Field(600, ge=1, description="per token; as many may come at once")
    body_bytes: int = Field(8 * MEBIBYTE, ge=1, description="of a request, uploads aside")
    upload_bytes: int = Field(256 * MEBIBYTE, ge=1, description="of uploaded weights")
    stored_uploads: int = Field(16, ge=1, description="uploaded files kept, per token")
    concurrent_jobs: int = Field(4, ge=1, description="prunings queued or running, per token")
    streams: int = Field(8, ge=1, description="event streams open at a time, per token")
    batch: int = Field(256, ge=1, description="observations in a request for actions")
    job_seconds: float = Field(3600.0, gt=0, description="that a pruning may take")
    request_seconds: float = Field(30.0, gt=0, description="that a request may take, event streams aside")


class ServiceSettings(BaseModel):
    """What ``zeroout serve`` serves, and where."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    directory: Path = Field(description="of records, uploads and results")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=1, le=65535)
    workers: int = Field(1, ge=1, description="prunings that run at a time")
    controllers: dict[str, Path] = Field(default_factory=dict, description="trained controllers, by name")
    home: Path = Field(default_factory=Path.cwd, description="working directory, to which data paths belong")
    limits: Limits = Field(default_factory=Limits)

    @property
    def local(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in LOOPBACK
