"""Set repfuse beside the deploy forms of the model zoo: nodes as trained, as fused, and as the source deploys.

    python tools/export_zoo.py zoo --width narrow
    python tools/try_zoo.py zoo

Each model is fused and checked, block by block and as a whole; Constant and Identity nodes are not counted. Prints
a Markdown table, and exits with 1 if a model is wrong or has more nodes than its source's deploy form.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import zoo_onnx

import repfuse
from repfuse.model import model_io


def fused(path: Path) -> tuple[int, str]:
    """How many nodes are left of a model, and what is wrong with it, nothing if all is right."""
    before = model_io.load(path)
    result = repfuse.fuse(before)
    blocks = [check.edit.output for check in repfuse.check_blocks(before, result) if not check.passed]
    verified = repfuse.verify(before, result.model)
    wrong = [f"{name} differs" for name in blocks] + ([] if verified.passed else list(verified.messages))
    return zoo_onnx.count(result.model)["nodes"], "; ".join(wrong)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zoo", type=Path, help="the folder that export_zoo.py wrote to")
    folder = parser.parse_args(arguments).zoo
    record = folder / "expected.json"
    if not record.is_file():
        parser.error(f"{record}: no such file; tools/export_zoo.py writes it")
    failures = []
    cells: dict[str, dict[str, str]] = {}
    for key, counts in json.loads(record.read_text(encoding="utf-8")).items():
        nodes, wrong = fused(folder / f"{key}.onnx")
        deploy = counts["deploy"]["nodes"]
        if nodes > deploy:
            wrong = f"{wrong}; more nodes than in deploy form".removeprefix("; ")
        if wrong:
            failures.append(f"{key}: {wrong}")
        model, _, flavour = key.rpartition(".")
        cells.setdefault(model, {})[flavour] = f"{counts['train']['nodes']} / {nodes} / {deploy}"
    flavours = list(dict.fromkeys(flavour for row in cells.values() for flavour in row))
    print("| model |", " | ".join(flavours), "|")
    print("|---" * (1 + len(flavours)) + "|")
    for model, row in cells.items():
        print(f"| {model} |", " | ".join(row.get(flavour, "") for flavour in flavours), "|")
    print(*failures, sep="\n", end="\n" * bool(failures), file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
