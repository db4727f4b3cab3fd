"""Set what repfuse makes beside a source's own deploy form: of the train form, and of the deploy form itself.

    python tools/export_zoo.py zoo --deploy --flavour ts --model replknet rsbb lcnetv3
    python tools/beyond_deploy.py zoo

All three forms run in turn on each backend. Prints a Markdown table: nodes, and the ratio of the deploy form's
latency to each of the others', with its 95 % interval; above 1 repfuse's form is faster.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from repfuse.fusion import fuse
from repfuse.measures import ratios
from repfuse.measures.interleave import interleave
from repfuse.measures.ratios import Ratio
from repfuse.model.model_io import load
from repfuse.runtimes.feeds import make_inputs
from repfuse.runtimes.installed import backends_named


def compared(
    train: Path, deploy: Path, *, threads: int, seconds: float
) -> tuple[list[int], list[list[Ratio]]]:
    """Compare the deploy form with what is fused from the train form, and from the deploy form.

    Returns:
        The nodes of the three; and, for each backend, how many times faster than the first the other two are.
    """
    forms = [load(deploy), fuse(train).model, fuse(deploy).model]
    (feed,) = make_inputs(forms[0], count=1, seed=0)
    found = []
    for backend in backends_named("all"):
        loaders = [lambda form=form, backend=backend: backend.load(form, threads=threads) for form in forms]
        loads = interleave(loaders, feed, threads=threads, seconds=seconds)
        found.append([ratios.compare([each.pairs(0, number) for each in loads]) for number in (1, 2)])
    return [len(form.graph.node) for form in forms], found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("zoo", type=Path, help="the folder that export_zoo.py wrote to, with --deploy")
    add("--seconds", type=float, default=6.0, help="for each model on each backend (default: 6)")
    add("--threads", type=int, default=1, help="threads for the runtimes (default: 1)")
    add("--model", nargs="+", metavar="NAME", help="(default: all)")
    options = parser.parse_args(arguments)
    paths = sorted((options.zoo / "deploy").glob("*.onnx"))
    if not paths:
        parser.error(f"{options.zoo / 'deploy'}: no deploy forms; tools/export_zoo.py --deploy writes them")
    heads = [f"{form}, {each.title}" for each in backends_named("all") for form in ("train", "deploy")]
    print(f"| model | nodes, deploy form | train, fused | deploy, fused | {' | '.join(heads)} |")
    print(f"|{'---|' * (4 + len(heads))}", flush=True)
    for path in paths:
        if options.model and path.name.split(".")[0] not in options.model:
            continue
        nodes, found = compared(
            options.zoo / path.name, path, threads=options.threads, seconds=options.seconds
        )
        cells = [f"{each.value:.2f} ({each.low:.2f} to {each.high:.2f})" for pair in found for each in pair]
        print(f"| {path.stem} | {' | '.join([*map(str, nodes), *cells])} |", flush=True)


if __name__ == "__main__":
    main()
