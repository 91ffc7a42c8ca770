"""``zeroout recognizer``: train, evaluate, convert, or describe the network that is to be pruned."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.cli import latency
from agents.cli.arguments import add_command, add_common, add_run, add_task, resolve_task
from agents.cli.output import note, table
from recognizers.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn

    from recognizers.blueprint import Blueprint

CONVERSIONS = ("serial", "skip")

_COMPARED_IMAGES = 128


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command and its own subcommands."""
    parser = add_command(
        commands,
        "recognizer",
        "train, evaluate, convert or describe the network that is to be pruned",
        "zeroout recognizer info --task cifar10/resnet56 --data npz:cifar10.npz",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    training = add_command(
        actions,
        "train",
        "train a recognizer from scratch",
        "zeroout recognizer train --task fashion_mnist/convnet --out runs/fashion",
    )
    add_task(training)
    training.add_argument("--resume", action="store_true", help="go on with an interrupted run in --out")
    add_run(training)
    add_common(training)
    training.set_defaults(run=run_train)
    evaluation = add_command(
        actions,
        "evaluate",
        "measure a trained recognizer on all splits, in float32",
        "zeroout recognizer evaluate --task cifar10/resnet56 --weights resnet56.safetensors --data npz:cifar10.npz",
    )
    add_task(evaluation)
    add_common(evaluation)
    evaluation.set_defaults(run=run_evaluate)
    conversion = add_command(
        actions,
        "convert",
        "rewrite a residual network, exactly, so that more of its filters can be pruned",
        "zeroout recognizer convert --task cifar10/resnet56 --weights resnet56.safetensors --data npz:cifar10.npz "
        "--to serial --out serial_resnet56.safetensors",
    )
    add_task(conversion)
    conversion.add_argument(
        "--to",
        choices=CONVERSIONS,
        required=True,
        help="serial: a plain chain of convolutions, without sums and batch norms, about twice as costly; "
        "skip: a 1x1 convolution, the identity at first, on every skip that has none",
    )
    conversion.add_argument("--out", type=Path, metavar="FILE", required=True, help="weights to write: *.safetensors")
    add_common(conversion)
    conversion.set_defaults(run=run_convert)
    latency.add_parser(actions)
    info = add_command(
        actions,
        "info",
        "print the unit table: what can be pruned, what is left out and why",
        "zeroout recognizer info --task digits/convnet",
    )
    add_task(info)
    add_common(info)
    info.set_defaults(run=run_info)


def run_train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train from scratch."""
    from agents.epoch_log import epoch_log
    from agents.run_directory import RunDirectory, RunSettings
    from recognizers.baseline import Baseline
    from recognizers.config import prepare, prepare_trained, save_weights, starting_point
    from recognizers.training import train

    task = resolve_task(arguments)
    config = task.recognizer
    if config.start == "untrained":
        raise ConfigurationError("recognizer.start=untrained asks for a network that nobody has trained")
    if arguments.seed:
        config = config.model_copy(update={"training": config.training.model_copy(update={"seed": arguments.seed})})
        task = task.model_copy(update={"recognizer": config})
    directory = RunDirectory.create(arguments.out, "recognizer", resume=arguments.resume)
    parts = prepare(config, task.data)
    # Given weights are the start of the training, not its result.
    network, provenance = starting_point(config, parts, Path(config.weights) if config.weights else None)
    directory.write_settings(RunSettings(command="recognizer train", task=task, seed=arguments.seed))
    note(f"{task.name}: training {config.architecture} in {directory.path}", quiet=arguments.json)

    with epoch_log(directory, "training") as on_epoch:
        result = train(
            network,
            parts.splits,
            parts.normalization,
            config.training,
            progress=not arguments.json,
            checkpoint=directory.path / "training.checkpoint",
            resume=arguments.resume,
            on_epoch=on_epoch,
        )
        baseline = Baseline(
            network,
            parts.splits,
            parts.normalization,
            precision="float32",
            blueprint=parts.blueprint,
            history=result.history,
            provenance=provenance,
        )
        baseline = prepare_trained(
            config,
            baseline,
            progress=not arguments.json,
            checkpoint=directory.path / "retraining.checkpoint",
            resume=arguments.resume,
            on_epoch=on_epoch,
        )
    save_weights(directory.recognizer, baseline.state, baseline.blueprint, baseline.provenance)
    selection, test = (baseline.measure(baseline.network, split) for split in ("selection", "test"))
    summary = directory.write_summary(
        "recognizer train",
        {
            "task": task.name,
            "weights": str(directory.recognizer),
            "best_epoch": result.best_epoch,
            "selection_accuracy": selection,
            "test_accuracy": test,
        },
    )
    text = (
        f"selection accuracy {selection:.2%} (epoch {result.best_epoch}), "
        f"test accuracy {test:.2%}\n"
        f"weights: {directory.recognizer}"
    )
    return {**summary, "_text": text}


def run_evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure."""
    from envs.tasks import make_recognizer

    task = resolve_task(arguments)
    # Everything is measured in float32 here; environment steps may use another precision.
    task = task.model_copy(update={"recognizer": task.recognizer.model_copy(update={"precision": "float32"})})
    recognizer = make_recognizer(task, progress=not arguments.json)
    figures: dict[str, float] = {}
    for split in ("reward", "selection", "test"):
        note(f"measuring {split} ({len(getattr(recognizer.splits, split).labels):,} images)", quiet=arguments.json)
        figures[split] = recognizer.baseline_accuracy(split)
    cost, original = recognizer.costs.baseline, recognizer.baseline.original_cost
    text = table(
        ["split", "images", "accuracy %"],
        [
            [name, f"{len(getattr(recognizer.splits, name).labels):,}", f"{100 * figures[name]:.2f}"]
            for name in ("reward", "selection", "test")
        ],
    )
    return {
        "command": "recognizer evaluate",
        "task": task.name,
        "architecture": recognizer.architecture,
        "validation_accuracy": figures["reward"],
        "selection_accuracy": figures["selection"],
        "test_accuracy": figures["test"],
        "parameters": cost.parameters,
        "macs": cost.macs,
        "original_parameters": original.parameters,
        "original_macs": original.macs,
        "base_sha256": recognizer.base_sha256,
        "_text": f"{text}\n\n{cost.parameters:,} parameters, {cost.macs:,} MACs"
        + (f" (unprepared: {original.parameters:,} and {original.macs:,})" if cost != original else ""),
    }


def run_convert(arguments: argparse.Namespace) -> dict[str, Any]:
    """Convert, compare, write."""
    import torch

    from envs.tasks import make_recognizer
    from recognizers.compact_file import shaped
    from recognizers.config import save_weights
    from recognizers.costs import count_cost
    from recognizers.evaluation import predict
    from recognizers.export import check_agreement

    if arguments.out.suffix != ".safetensors" or arguments.out.exists():
        reason = "exists already" if arguments.out.exists() else "must end in .safetensors"
        raise ConfigurationError(f"--out {arguments.out} {reason}")
    task = resolve_task(arguments)
    recognizer = make_recognizer(task, progress=not arguments.json)
    source = shaped(recognizer.blueprint, recognizer.base_state).to(recognizer.device)
    source.load_state_dict(recognizer.base_state)
    network, blueprint = _convert(source, recognizer.blueprint, arguments.to)

    note(f"comparing logits of {_COMPARED_IMAGES} training images", quiet=arguments.json)
    train = recognizer.splits.train.images
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:_COMPARED_IMAGES]
    expected, actual = (
        predict(each, train[chosen], recognizer.normalization, precision="float32") for each in (source, network)
    )
    difference = check_agreement(expected, actual, blueprint.architecture, recognizer.architecture)
    largest = float(expected.abs().max())
    save_weights(arguments.out, network.state_dict(), blueprint, recognizer.baseline.provenance)
    example = recognizer.normalization.normalize(train[:1].to(recognizer.device))
    before, after = (count_cost(each, example) for each in (source, network))
    options = "".join(f" {name}={json.dumps(value)}" for name, value in blueprint.arguments.items())
    text = table(
        ["network", "parameters", "MACs"],
        [
            [recognizer.architecture, f"{before.parameters:,}", f"{before.macs:,}"],
            [f"{blueprint.architecture}{options}", f"{after.parameters:,}", f"{after.macs:,}"],
            ["ratio", f"{after.parameters / before.parameters:.3f}", f"{after.macs / before.macs:.3f}"],
        ],
    )
    return {
        "command": "recognizer convert",
        "task": task.name,
        "architecture": blueprint.architecture,
        "arguments": blueprint.arguments,
        "weights": str(arguments.out),
        "compared_images": len(chosen),
        "largest_difference": difference,
        "largest_logit": largest,
        "parameters_before": before.parameters,
        "macs_before": before.macs,
        "parameters": after.parameters,
        "macs": after.macs,
        "_text": f"{text}\n\nlogits of {len(chosen)} images differ by at most {difference:.2g}, of {largest:.2g}\n"
        f"weights: {arguments.out}",
    }


def _convert(network: "nn.Module", blueprint: "Blueprint", form: str) -> "tuple[nn.Module, Blueprint]":
    """The network in another form, and how that is created.

    Raises:
        ConfigurationError: there is no such form of this network.
    """
    from dataclasses import replace

    from recognizers.compact_file import shaped
    from recognizers.zoo.resnet import ResNet, add_skip_convolutions
    from recognizers.zoo.serial import SERIAL_PREFIX, serialise

    if not isinstance(network, ResNet):
        raise ConfigurationError(
            f"only the zoo's own residual networks can be converted, and {blueprint.architecture} is none of them"
        )
    converted: nn.Module
    if form == "serial":
        converted = serialise(network)
        blueprint = replace(blueprint, architecture=SERIAL_PREFIX + blueprint.architecture, arguments={})
    else:
        converted = add_skip_convolutions(network)
        blueprint = replace(blueprint, arguments={**blueprint.arguments, "skip_convolutions": True})
    # As whoever reads the file will build it.
    state = converted.state_dict()
    created = shaped(blueprint, state).to(next(network.parameters()).device)
    created.load_state_dict(state)
    return created, blueprint


def run_info(arguments: argparse.Namespace) -> dict[str, Any]:
    """Describe the units. No trained weights are needed; given ones say how narrow a prepared network is."""
    import numpy as np

    from recognizers.config import prepare, starting_point
    from recognizers.costs import CostModel
    from recognizers.dependency import build_unit_table

    task = resolve_task(arguments)
    weights = task.recognizer.weights
    parts = prepare(task.recognizer, task.data)
    network, _ = starting_point(task.recognizer, parts, Path(weights) if weights else None)
    example = parts.normalization.normalize(parts.splits.train.images[:2])
    units = build_unit_table(network, example)
    costs = CostModel(network, units, example)
    layers, rows = [], []
    for layer in units.layers:
        mask = np.ones(units.n_units, dtype=np.int8)
        mask[layer.start] = 0
        parameters, macs, _ = costs.reductions(mask)
        tied = len(layer.producers) - 1
        layers.append(
            {
                "name": layer.name,
                "units": len(layer),
                "tied": list(layer.producers[1:]),
                "parameters_per_unit": parameters,
                "macs_per_unit": macs,
            }
        )
        rows.append(
            [
                layer.name + (f" (+{tied} tied)" if tied else ""),
                str(len(layer)),
                f"{100 * parameters:.3f}",
                f"{100 * macs:.3f}",
            ]
        )
    cost = costs.baseline
    shape = " x ".join(map(str, example.shape[1:]))
    text = (
        f"{task.recognizer.architecture}: {units.n_units:,} units in {len(units.layers)} layers; "
        f"{cost.parameters:,} parameters, {cost.macs:,} MACs at {shape}\n\n"
        + table(["layer", "units", "params % per unit", "MACs % per unit"], rows)
    )
    if units.excluded:
        text += "\n\nleft out:" + "".join(
            f"\n  {entry.name} ({entry.sets} channels"
            + (f", tied with {len(entry.producers) - 1} more layers" if len(entry.producers) > 1 else "")
            + f"): {entry.reason}"
            for entry in units.excluded
        )
    return {
        "command": "recognizer info",
        "task": task.name,
        "architecture": task.recognizer.architecture,
        "units": units.n_units,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "layers": layers,
        "excluded": [asdict(entry) for entry in units.excluded],
        "_text": text,
    }
