"""Settings of preparations, and what weight files say about theirs."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recognizers.errors import FileError, first_fault
from recognizers.training.config import RetrainingConfig

Start = Literal["trained", "untrained"]
Variant = Literal["top", "best", "split"]

_KEY = "provenance"


class FilterReplacement(BaseModel):
    """Overwrite the least important filters of a trained network with copies of the most important ones; retrain."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["replace"] = "replace"
    variant: Variant = Field(
        "top",
        description="top: the most important filters are copied once each; best: the most important one is copied onto "
        "all; split: as top, and those who read a filter and its copy take half of each",
    )
    rate: float = Field(
        0.1, ge=0, le=0.5, description="share of each layer's filters that is replaced; 0: retraining alone"
    )
    criterion: str = Field("hrank", description="that says which filters are important")
    training: RetrainingConfig = Field(
        default_factory=RetrainingConfig, description="how the network is retrained afterwards"
    )


class PcaInit(BaseModel):
    """Narrow an untrained network to the principal components of its feature maps of noise, before it is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["pca-init"] = "pca-init"
    contribution: float = Field(
        0.99, gt=0, le=1, description="each layer keeps as many filters as it takes components to reach this share"
    )
    images: int = Field(256, ge=1, description="of noise, N(0, 1) in each pixel")


AnyPreparation = Annotated[FilterReplacement | PcaInit, Field(discriminator="kind")]


class Provenance(BaseModel):
    """How base weights came about. Files that say nothing hold trained weights of a complete network."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    start: Start = "trained"
    preparation: AnyPreparation | None = None

    def to_metadata(self) -> dict[str, str]:
        """As metadata of a safetensors file."""
        return {_KEY: self.model_dump_json()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], source: str) -> "Provenance":
        """From metadata of a safetensors file.

        Raises:
            FileError: it is unusable; ``source`` names the file.
        """
        try:
            return cls.model_validate_json(metadata.get(_KEY, "{}"))
        except ValidationError as error:
            raise FileError(f"{source} has unusable metadata: {_KEY}: {first_fault(error)}") from error
