"""``jaxunlearn models``: the networks whose weights fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxunlearn.cli import _flags, _output

#: Whose layout -> the kinds of file or folder that such weights come in.
FILES = {
    "Keras": ".npz .safetensors",
    "Hugging Face": "folder",
}
#: PyTorch's own.
TORCH_FILES = ".pth .safetensors .npz"


def main(argv: Sequence[str]) -> int:
    """List the networks of the registry."""
    parser = _flags.Parser(
        prog="jaxunlearn models",
        description="List the networks that pre-trained weights fit into, by the names that --arch takes.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    args = parser.parse_args(argv)

    rows = _rows()
    if args.json:
        _output.machine(rows, indent=1)
        return 0
    cells = [
        (row["name"], f"{row['parameters']:,}", _shape(row), row["layout"], " ".join(row["files"])) for row in rows
    ]
    _output.table(
        [("name", "parameters", "input", "names of tensors", "files"), *cells], left=(0, 2, 3, 4), whole=(0, 1, 2)
    )
    print()
    print("also by the names of others:")
    others = [(row["name"], ", ".join(row["aliases"])) for row in rows if row["aliases"]]
    _output.facts(others, indent="  ")
    print()
    print(
        "The number of classes is read from the weights. A folder of Transformers (ResNetForImageClassification,\n"
        "MobileNetV2ForImageClassification, ViTForImageClassification) of any size needs no --arch. Weights by Flax's\n"
        "own names fit, too, also as .msgpack. A network of your own, Linen or NNX, is --model package.module:NAME, a\n"
        "class or a function. `jaxunlearn export` writes the same kinds of file back."
    )
    return 0


def _rows() -> list[dict[str, Any]]:
    from jaxunlearn import models

    rows = []
    for name in models.names():
        known = models.known(name)
        rows.append(
            {
                "name": name,
                "aliases": list(models.aliases(name)),
                "parameters": known.parameters,
                "input": list(known.input_shape),
                "classes": known.num_classes,
                "mean": list(known.mean),
                "std": list(known.std),
                "layout": known.layout,
                "files": FILES.get(known.layout, TORCH_FILES).split(),
            }
        )
    return rows


def _shape(row: dict[str, Any]) -> str:
    return "x".join(map(str, row["input"]))
