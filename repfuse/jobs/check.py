"""Was a model exported as it was trained? A linter: it says what fusing would do; nothing is written or run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from repfuse.errors import RepfuseError
from repfuse.fusion import fuse
from repfuse.measures import estimate
from repfuse.measures.estimate import Speedup
from repfuse.measures.stats import Stats, measure
from repfuse.model import model_io, places
from repfuse.remarks import Edit, refuse_invalid
from repfuse.reporting.figures import counted, si

UNFUSED = 3
"""The exit code where a model is not fused."""


@dataclass(frozen=True)
class Finding:
    """What was found out about one file.

    Attributes:
        path: The file, as it was named.
        blocks: How many blocks of each family are not fused.
        edits: What fusing would change.
        before: The size of the model; None where it could not be read.
        after: The size that it would have; None where there is nothing to fuse.
        speedup: An estimate, in a range; None where shapes are open.
        error: Why the file could not be checked; empty where it was.
    """

    path: str
    blocks: Mapping[str, int] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()
    before: Stats | None = None
    after: Stats | None = None
    speedup: Speedup | None = None
    error: str = ""

    @property
    def status(self) -> str:
        """`clean`, `unfused` or `error`."""
        return "error" if self.error else "unfused" if self.edits else "clean"

    @property
    def message(self) -> str:
        """All of it in a sentence."""
        if self.error:
            return self.error
        if not self.edits:
            return "clean: no branches that could be fused are left"
        return (
            f"{_blocks(self.blocks)} not fused: this model {_gain(self)}; run repfuse on it before deploying"
        )


def check(name: str, *, patterns: Sequence[str] | None = None) -> Finding:
    """Find out whether fusing would change a model.

    Args:
        name: A path, or a URL that fsspec knows.
        patterns: As for `repfuse.fuse`.

    Returns:
        What was found; a file that cannot be read gives a finding, too.
    """
    try:
        with places.local(name) as path:
            result = fuse(path, patterns=patterns)
            refuse_invalid(name, result.remarks)
            before = model_io.structure(path)
            size = measure(before, size=path.stat().st_size)
    except RepfuseError as error:
        return Finding(name, error=str(error).removeprefix(f"{name}: "))
    merged = tuple(edit for edit in result.edits if edit.kernel)
    if not merged:
        return Finding(name, before=size)
    return Finding(
        name,
        dict(Counter(edit.pattern for edit in merged).most_common()),
        merged,
        size,
        measure(result.model),
        estimate.speedup(estimate.work(before), estimate.work(result.model)),
    )


def exit_code(findings: Sequence[Finding]) -> int:
    """2 if a file could not be checked, 3 if a model is not fused, else 0."""
    if any(finding.error for finding in findings):
        return RepfuseError.exit_code
    return UNFUSED if any(finding.edits for finding in findings) else 0


def tally(findings: Sequence[Finding]) -> str:
    """How many models are what, in a sentence."""
    unfused = sum(finding.status == "unfused" for finding in findings)
    failed = sum(finding.status == "error" for finding in findings)
    text = f"{counted(len(findings), 'model')} checked: {unfused} not fused, {failed} could not be checked"
    return text.removesuffix(", 0 could not be checked")


def _blocks(blocks: Mapping[str, int]) -> str:
    """Such as `28 blocks (27 x RepVGG, 1 x RepConv) are`."""
    total = sum(blocks.values())
    if len(blocks) == 1:
        (family,) = blocks
        return f"{counted(total, f'{family} block')} {'is' if total == 1 else 'are'}"
    listed = "; ".join(f"{number} x {family}" for family, number in blocks.items())
    return f"{counted(total, 'block')} ({listed}) are"


def _gain(finding: Finding) -> str:
    """Such as `would run about 1.1 to 1.2 times as fast (an estimate), with 47 nodes in place of 125`."""
    before, after = finding.before, finding.after
    assert before and after
    sizes = f"{after.nodes} nodes in place of {before.nodes}"
    if before.macs and after.macs and after.macs != before.macs:
        sizes += f" and {si(after.macs)} multiply-adds in place of {si(before.macs)}"
    if finding.speedup is None:
        return f"would have {sizes}"
    return f"would run {_faster(finding.speedup)} (an estimate), with {sizes}"


def _faster(speedup: Speedup) -> str:
    low, high = (f"{factor:.1f}" if factor >= 1.95 else f"{factor:.2f}" for factor in speedup)
    if low == high:
        return f"about {high} times as fast"
    return f"up to {high} times as fast" if low == "1.00" else f"about {low} to {high} times as fast"
