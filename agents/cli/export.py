"""``zeroout export``: a pruned network, or its mask, for other programs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.cli.arguments import add_command, add_common, add_source, task_overrides
from agents.cli.output import note, table
from recognizers.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np

    from agents.sources import OpenedMask
    from recognizers.export import PrunedNetwork

FORMATS = {
    "torch-prune": "pruned.torch-prune.safetensors",
    "compact": "pruned.compact.safetensors",
    "onnx": "pruned.onnx",
    "mask": "rounded.mask.safetensors",
}
"""What can be written, and the name that it has by default."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "export",
        "write a pruned network for other programs, checked against the masked one",
        "zeroout export runs/digits --to onnx --round-to 8 --out digits.onnx",
    )
    add_source(parser)
    parser.add_argument(
        "--to",
        choices=list(FORMATS),
        required=True,
        help="torch-prune: state dict of the complete network with torch.nn.utils.prune's *_orig and *_mask; compact: "
        "state dict of the narrow network, and a JSON of the kept indices; onnx: the narrow network, for any batch "
        "size; mask: the mask alone, rounded",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write (default: beside the mask)")
    parser.add_argument("--finetuned", action="store_true", help="the fine-tuned weights of the run")
    parser.add_argument(
        "--round-to",
        type=int,
        metavar="N",
        help="give units back until every layer keeps a multiple of N channels, then recover",
    )
    parser.add_argument(
        "--round-by", default="l1", metavar="CRITERION", help="which units come back first (default: l1)"
    )
    parser.add_argument(
        "--include-normalization",
        action="store_true",
        help="onnx: normalise within the file, so that it takes uint8 images; else its metadata say how to",
    )
    parser.add_argument("--seed", type=int, default=0, help="of a criterion that draws (default: 0)")
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Export."""
    from agents.sources import Source
    from recognizers.costs import count_cost
    from recognizers.export import export_compact, export_onnx, export_torch_prune
    from recognizers.masks import save_mask

    _check(arguments)
    source = Source.at(arguments.source)
    out: Path = arguments.out or source.mask.parent / FORMATS[arguments.to]
    _check_out(out, arguments.to)
    task = source.task(arguments.task, task_overrides(arguments))
    note(f"{task.name}: {source.mask} to {out}", quiet=arguments.json)
    opened = source.open(task, progress=not arguments.json)
    added: dict[str, int] = {}
    if arguments.round_to is not None:
        opened, added = _rounded(opened, arguments.round_to, arguments.round_by, arguments.seed)
    pruned = opened.finetuned() if arguments.finetuned else opened.pruned()
    files, difference = [out], None
    if arguments.to == "torch-prune":
        difference = export_torch_prune(out, pruned)
    elif arguments.to == "compact":
        difference = export_compact(out, pruned)
        files.append(out.with_suffix(".json"))
    elif arguments.to == "onnx":
        difference = export_onnx(out, pruned, normalization=arguments.include_normalization)
    else:
        save_mask(out, pruned.table, pruned.mask, opened.metadata)
    example = pruned.normalization.normalize(pruned.images[:1])
    before, after = (count_cost(network, example) for network in (pruned.complete, pruned.compact))
    return {
        "command": "export",
        "task": task.name,
        "format": arguments.to,
        "files": [str(file) for file in files],
        "finetuned": arguments.finetuned,
        "parameters_before": before.parameters,
        "parameters": after.parameters,
        "macs_before": before.macs,
        "macs": after.macs,
        "compared_images": len(pruned.images),
        "largest_difference": difference,
        "largest_logit": float(pruned.logits.abs().max()),
        "added_units": added,
        "_text": _text(pruned, before.parameters, after.parameters, added, difference, files),
    }


def _check(arguments: argparse.Namespace) -> None:
    if arguments.include_normalization and arguments.to != "onnx":
        raise ConfigurationError(f"--include-normalization belongs to --to onnx, not to {arguments.to}")
    if arguments.round_to is not None and arguments.round_to < 1:
        raise ConfigurationError(f"--round-to must be at least 1, got {arguments.round_to}")
    if arguments.to == "mask" and (arguments.round_to is None or arguments.finetuned):
        raise ConfigurationError("--to mask writes a rounded mask: it needs --round-to N, and no weights")
    if arguments.finetuned and arguments.round_to is not None:
        raise ConfigurationError(
            "units that come back were not fine-tuned: write the rounded mask first (--to mask --round-to N), "
            "fine-tune that, then export it with --finetuned"
        )


def _check_out(out: Path, to: str) -> None:
    suffix = Path(FORMATS[to]).suffix
    if out.suffix != suffix:
        raise ConfigurationError(f"--out {out} must end in {suffix}")
    for file in (out, out.with_suffix(".json")) if to == "compact" else (out,):
        if file.exists():
            raise ConfigurationError(f"{file} exists already: choose another --out")


def _rounded(opened: "OpenedMask", multiple: int, name: str, seed: int) -> "tuple[OpenedMask, dict[str, int]]":
    """The mask with units given back, as a mask without a run of its own, and how many units came back by layer."""
    from dataclasses import replace

    import numpy as np

    from agents.sources import Source
    from recognizers.criteria import criterion
    from recognizers.criteria.registry import comparable_scores
    from recognizers.export import round_up

    recognizer = opened.recognizer
    scores = comparable_scores(criterion(name), recognizer, np.random.default_rng(seed))
    mask = round_up(recognizer.table, opened.mask, multiple, scores)
    recognizer.load_mask(mask)
    metadata = opened.metadata.model_copy(
        update={
            "validation_accuracy": recognizer.accuracy(),
            "parameter_reduction": recognizer.parameter_reduction,
            "macs_reduction": recognizer.macs_reduction,
        }
    )
    rounded = replace(opened, source=Source(opened.source.mask, None), mask=mask, metadata=metadata)
    return rounded, _difference(opened, mask)


def _difference(opened: "OpenedMask", mask: "np.ndarray") -> dict[str, int]:
    """Units that a mask keeps beyond those of the opened one, by layer, where there are any."""
    table_ = opened.recognizer.table
    before, after = table_.kept_per_layer(opened.mask), table_.kept_per_layer(mask)
    return {layer: after[layer] - before[layer] for layer in after if after[layer] != before[layer]}


def _text(
    pruned: "PrunedNetwork",
    before: int,
    after: int,
    added: dict[str, int],
    difference: float | None,
    files: list[Path],
) -> str:
    kept = pruned.table.kept_per_layer(pruned.mask)
    rows = [
        [layer.name, str(len(layer)), str(kept[layer.name]), str(added.get(layer.name, ""))]
        for layer in pruned.table.layers
    ]
    text = table(["layer", "units", "kept", "given back"], rows)
    text += f"\n\n{before:,} parameters, {after:,} remain"
    if difference is not None:
        text += (
            f"\nlogits of {len(pruned.images)} images differ from the masked network's by at most {difference:.2g}, "
            f"of {float(pruned.logits.abs().max()):.2g}"
        )
    return text + "".join(f"\nwritten: {file}" for file in files)
