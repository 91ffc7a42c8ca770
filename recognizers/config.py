"""Settings of a recognizer and of its data, and how one is built from them."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from recognizers.baseline import Baseline
from recognizers.blueprint import Blueprint
from recognizers.compact_file import shape_like
from recognizers.criteria import criterion
from recognizers.data import Normalization, Splits, dataset_files, load_dataset, split
from recognizers.errors import FileError, WeightsError
from recognizers.evaluation import Precision
from recognizers.files import read_tensors, write_tensors
from recognizers.latency_table import LatencyModel, read_latency_table
from recognizers.preparation import AnyPreparation, FilterReplacement, PcaInit, Provenance, Start
from recognizers.preparation.narrowing import narrowed_network
from recognizers.preparation.retraining import replace_filters
from recognizers.process import keep_freed_memory, set_threads
from recognizers.recognizer import DEFAULT_CACHE_MEGABYTES, Recognizer
from recognizers.recovery import Recovery
from recognizers.sharing import fingerprint, shared
from recognizers.training import EpochRecord, RetrainingConfig, TrainingConfig, train

WEIGHTS_VARIABLE = "ZEROOUT_WEIGHTS_DIR"


class DataConfig(BaseModel):
    """Which images, and how they are divided."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    spec: str = Field(
        description="digits, fashion_mnist, cifar10, cifar100, imagefolder:PATH or npz:PATH (MedMNIST layout)"
    )
    root: str | None = Field(None, description="folder of named data sets; default $ZEROOUT_DATA_DIR, then ./data")
    download: bool = Field(False, description="download a missing named data set into the root")
    held_out: float = Field(0.05, gt=0, lt=1, description="share of the training images held out from training")
    selection_share: float = Field(
        0.5, gt=0, lt=1, description="share of the held-out images that only chooses among finished masks"
    )
    seed: int = Field(0, ge=0, description="of the division")
    validation_images: int | None = Field(
        None,
        ge=1,
        description="measure reward accuracies on so many images of the reward split, a fixed stratified subset; "
        "default: all",
    )
    mean: tuple[float, ...] | None = Field(
        None, description="input mean per channel, of values in 0..1; default: data's"
    )
    std: tuple[float, ...] | None = Field(None, description="input standard deviation per channel; default: data's")

    @model_validator(mode="after")
    def _both(self) -> "DataConfig":
        if (self.mean is None) != (self.std is None):
            raise ValueError("give mean and std together")
        return self


class RecognizerConfig(BaseModel):
    """Which network, and how it runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    architecture: str = Field(description="name in the zoo, or of a torchvision classification model")
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the architecture")
    weights: str | None = Field(
        None,
        description="trained weights: safetensors, or a state dict saved by torch; "
        f"default: ARCHITECTURE.safetensors in ${WEIGHTS_VARIABLE}",
    )
    start: Start = Field(
        "trained", description="untrained: prune the network as it is initialised, seeded by the training's seed"
    )
    preparation: AnyPreparation | None = Field(
        None,
        description="what is done to the network before it is pruned: replace (filter replacement, on trained weights) "
        "or pca-init (narrowed at initialisation, then trained)",
    )
    train_on_demand: bool = Field(False, description="train missing weights on the spot (seconds, not hours)")
    precision: Precision = Field("auto", description="of reward and recovery passes: auto, float32 or bfloat16")
    batch_size: int | None = Field(
        None, ge=1, description="images per forward pass; default: as many as fit the processor's cache"
    )
    cache_megabytes: int = Field(
        DEFAULT_CACHE_MEGABYTES,
        ge=0,
        description="memory for tensors kept between steps, of all environments of a task in a process",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of the process; small networks run fastest on one; default: PyTorch's; "
        "a forked process always has one",
    )
    latency_table: str | None = Field(
        None,
        description="file that `zeroout recognizer latency` wrote for this network; objectives count latency by it",
    )
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="how the weights are trained")
    finetuning: RetrainingConfig = Field(
        default_factory=RetrainingConfig, description="how a finished, pruned network is fine-tuned"
    )

    @model_validator(mode="after")
    def _check_start(self) -> "RecognizerConfig":
        if self.start == "untrained" and isinstance(self.preparation, FilterReplacement):
            raise ValueError("preparation 'replace' copies what filters have learned: start must be 'trained'")
        if self.start == "untrained" and self.finetuning.learns:
            raise ValueError(
                "finetuning.distillation and finetuning.hints need a trained network to learn from: "
                "start must be 'trained'"
            )
        return self


@dataclass(frozen=True)
class Ingredients:
    """A data set divided and normalised, beside an untrained network for it."""

    splits: Splits
    normalization: Normalization
    blueprint: Blueprint
    network: nn.Module


def prepare(config: RecognizerConfig, data: DataConfig) -> Ingredients:
    """Load and divide the data, and create the network with fresh weights (seeded by the training seed)."""
    dataset = load_dataset(data.spec, root=Path(data.root) if data.root else None, download=data.download)
    splits = split(
        dataset,
        held_out=data.held_out,
        selection_share=data.selection_share,
        seed=data.seed,
        validation_images=data.validation_images,
    )
    normalization = Normalization(data.mean, data.std) if data.mean and data.std else Normalization.of(splits.train[0])
    blueprint = Blueprint(config.architecture, dataset.classes, dataset.image_shape[0], config.arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        network = blueprint.create()
    return Ingredients(splits, normalization, blueprint, network)


def build_recognizer(
    config: RecognizerConfig,
    data: DataConfig,
    recovery: Recovery,
    *,
    baseline: Baseline | None = None,
    progress: bool = False,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> Recognizer:
    """The recognizer that the settings describe, with trained weights.

    In one process, recognizers share their baseline where equal settings give an equal one.

    Args:
        config: the network.
        data: its data.
        recovery: what it does after units were zeroed out.
        baseline: the one of these settings, where it exists already.
        progress: show a progress bar where weights are trained on demand.
        on_epoch: called with every epoch of that training, be it now or for another recognizer before.

    Raises:
        DataError: the data are missing or malformed.
        WeightsError: the weights are missing or do not fit.
        ConfigurationError: the latency table is one of another network.
    """
    set_threads(config.threads)
    keep_freed_memory()
    if baseline is None:
        reported: list[EpochRecord] = []

        def report(record: EpochRecord) -> None:
            reported.append(record)
            if on_epoch is not None:
                on_epoch(record)

        baseline = shared(
            _baseline_key(config, data), lambda: _build_baseline(config, data, progress=progress, on_epoch=report)
        )
        for record in baseline.history[len(reported) :]:
            report(record)
    return Recognizer(
        baseline, recovery=recovery, cache_megabytes=config.cache_megabytes, latency=_latency(config, baseline)
    )


def _latency(config: RecognizerConfig, baseline: Baseline) -> LatencyModel | None:
    if config.latency_table is None:
        return None
    return LatencyModel(
        read_latency_table(config.latency_table),
        baseline.network,
        baseline.table,
        baseline.normalization.normalize(baseline.splits.train.images[:1].to(baseline.device)),
        baseline.architecture,
    )


def _build_baseline(
    config: RecognizerConfig, data: DataConfig, *, progress: bool, on_epoch: Callable[[EpochRecord], None]
) -> Baseline:
    parts = prepare(config, data)
    path = find_weights(config)
    if path is None and config.start == "trained" and not config.train_on_demand:
        folder = f"put {config.architecture}.safetensors into ${WEIGHTS_VARIABLE}, " if _reads_folder(config) else ""
        raise WeightsError(
            f"{config.architecture} on {data.spec} needs trained weights: pass --weights PATH, {folder}or train them "
            "with `zeroout recognizer train`"
        )
    network, provenance = starting_point(config, parts, path)
    history: tuple[EpochRecord, ...] = ()
    if path is None and config.start == "trained":
        history = train(
            network, parts.splits, parts.normalization, config.training, progress=progress, on_epoch=on_epoch
        ).history
    baseline = Baseline(
        network,
        parts.splits,
        parts.normalization,
        precision=config.precision,
        batch_size=config.batch_size,
        blueprint=parts.blueprint,
        history=history,
        provenance=provenance,
    )
    return prepare_trained(config, baseline, progress=progress, on_epoch=on_epoch)


def starting_point(config: RecognizerConfig, parts: Ingredients, path: Path | None) -> tuple[nn.Module, Provenance]:
    """The network before any training that is still to come: with given weights, else as it is initialised.

    Args:
        config: the network.
        parts: of :func:`prepare`; the network in them is used up.
        path: of the weights.

    Raises:
        FileError: missing, truncated or corrupt weights.
        WeightsError: they do not fit, or came about in another way than the settings say.
        UnknownNameError: the preparation names an unknown criterion.
    """
    if isinstance(config.preparation, FilterReplacement):
        criterion(config.preparation.criterion)  # a wrong name is told before hours of training
    if path is None:
        if not isinstance(config.preparation, PcaInit):
            return parts.network, Provenance(start=config.start)
        shape = parts.splits.train.images.shape[1:]
        network = narrowed_network(parts.network, shape, config.preparation, config.training.seed)
        return network, Provenance(start=config.start, preparation=config.preparation)
    provenance = load_weights(parts.network, path, config.architecture)
    if provenance.start != config.start:
        raise WeightsError(f"{path} holds {provenance.start} weights, but recognizer.start is {config.start}")
    wanted = config.preparation
    if provenance.preparation is None and isinstance(wanted, PcaInit):
        raise WeightsError(
            f"preparation 'pca-init' narrows a network before it is trained, and {path} holds weights of a complete "
            "one: leave the weights out"
        )
    if provenance.preparation is not None and wanted not in {None, provenance.preparation}:
        raise WeightsError(
            f"{path} holds weights that were prepared in another way already "
            f"({provenance.preparation.model_dump_json()}): leave recognizer.preparation out, or give other weights"
        )
    return parts.network, provenance


def prepare_trained(
    config: RecognizerConfig,
    baseline: Baseline,
    *,
    progress: bool = False,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> Baseline:
    """The baseline after what its settings ask to be done to trained weights, if that has not been done before.

    The arguments are those of :func:`recognizers.preparation.retraining.replace_filters`.
    """
    if not isinstance(config.preparation, FilterReplacement) or baseline.provenance.preparation is not None:
        return baseline
    return replace_filters(
        baseline,
        config.preparation,
        seed=config.training.seed,
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
        on_epoch=on_epoch,
    )


def _baseline_key(config: RecognizerConfig, data: DataConfig) -> str:
    """Equal for settings that give equal baselines, as long as the files that they name are not changed."""
    root = Path(data.root) if data.root else None
    if data.download and not dataset_files(data.spec, root=root):
        load_dataset(data.spec, root=root, download=True)  # so that its files are there to be named
    files, weights = dataset_files(data.spec, root=root), find_weights(config)
    decisive = {"architecture", "arguments", "start", "preparation", "precision", "batch_size"}
    if weights is None or config.preparation is not None:
        decisive.add("training")
    settings = [config.model_dump(include=decisive), data.model_dump(exclude={"root", "download"})]
    return fingerprint(settings, [*files, weights] if weights else files)


def find_weights(config: RecognizerConfig) -> Path | None:
    """Path of the weights: as configured, else ARCHITECTURE.safetensors in the environment variable's folder.

    Those in the folder are trained weights of complete networks.
    """
    if config.weights is not None:
        return Path(config.weights)
    folder = os.environ.get(WEIGHTS_VARIABLE) if _reads_folder(config) else None
    path = Path(folder) / f"{config.architecture}.safetensors" if folder else None
    return path if path is not None and path.is_file() else None


def _reads_folder(config: RecognizerConfig) -> bool:
    return config.start == "trained" and not isinstance(config.preparation, PcaInit)


def load_weights(network: nn.Module, path: Path, architecture: str) -> Provenance:
    """Load weights into ``network``: safetensors, or a state dict saved by torch (never unpickled).

    A network whose preparation narrowed it becomes as narrow as the file says.

    Returns:
        How the weights came about.

    Raises:
        FileError: missing, truncated or corrupt.
        WeightsError: for another architecture or another number of classes.
    """
    state, provenance = _read_state(path)
    if isinstance(provenance.preparation, PcaInit):
        shape_like(network, {name: tensor.shape for name, tensor in state.items()})
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        detail = " ".join(str(error).split("\n")[1:3]).strip()
        raise WeightsError(f"{path} does not hold weights for {architecture}: {detail[:300]}") from error
    return provenance


def save_weights(
    path: Path, state: Mapping[str, Tensor], blueprint: Blueprint, provenance: Provenance | None = None
) -> None:
    """Write base weights atomically as safetensors; without ``provenance`` trained ones of a complete network."""
    known = (provenance or Provenance()).to_metadata()
    write_tensors(path, state, {"format": "zeroout-weights", **blueprint.to_metadata(), **known})


def _read_state(path: Path) -> tuple[dict[str, Tensor], Provenance]:
    if path.suffix == ".safetensors":
        tensors, metadata = read_tensors(path)
        return tensors, Provenance.from_metadata(metadata, str(path))
    if not path.is_file():
        raise FileError(f"no such file: {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for corrupt and for unsafe files
        raise FileError(
            f"{path} is not a readable state dict: {(str(error) or repr(error)).splitlines()[0]}"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} must hold a state dict (names to tensors)")
    named = {name.removeprefix("module."): value for name, value in state.items()}  # saved from DataParallel
    return named, Provenance()
