"""How a network is created: what files must say so that it can be created again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from recognizers import zoo
from recognizers.errors import ConfigurationError, FileError


@dataclass(frozen=True)
class Blueprint:
    """Name and arguments of an architecture.

    Attributes:
        architecture: name in the zoo, or of a torchvision classification model.
        classes: number of classes.
        in_channels: channels of the images.
        arguments: further keyword arguments.
    """

    architecture: str
    classes: int
    in_channels: int
    arguments: dict[str, Any] = field(default_factory=dict)

    def create(self) -> nn.Module:
        """A network with fresh weights, drawn from torch's global generator."""
        if taken := {"classes", "in_channels", "name"} & self.arguments.keys():
            raise ConfigurationError(f"arguments of {self.architecture}: {sorted(taken)} follow from the data")
        return zoo.create(self.architecture, classes=self.classes, in_channels=self.in_channels, **self.arguments)

    def to_metadata(self) -> dict[str, str]:
        """As metadata of a safetensors file."""
        return {
            "architecture": self.architecture,
            "classes": str(self.classes),
            "in_channels": str(self.in_channels),
            "arguments": json.dumps(self.arguments),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], source: str) -> "Blueprint":
        """From metadata of a safetensors file.

        Raises:
            FileError: something is missing or unusable; ``source`` names the file.
        """
        try:
            arguments = json.loads(metadata["arguments"])
            if not isinstance(arguments, dict):
                raise ValueError("arguments are not a mapping")
            return cls(metadata["architecture"], int(metadata["classes"]), int(metadata["in_channels"]), arguments)
        except (KeyError, ValueError) as error:
            raise FileError(f"{source} has unusable metadata: {error!r}") from error
