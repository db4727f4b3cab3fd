"""Remarks: what repfuse did and what it left alone, one sentence for each join, sequence or node.

They are a compiler's optimization remarks: a `Remark` names the node, tells whether it was fused, and if
not, which node stands in the way and why. `Edit` is the record of one change made to a model. The report
reads these two and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from repfuse.errors import BadInputError

LITTLE = 0.005
"""A share of the cost that nobody would notice."""


class Outcome(str, Enum):
    """What became of a group of branches, or of ops that are none."""

    FUSED = "fused"
    REFUSED = "refused"
    """A group of branches, which share a source, was left alone."""
    REWRITTEN = "rewritten"
    """Nodes that together are an operator of ONNX's are that operator now."""
    KEPT = "kept"
    """Linear ops in a row, or a join whose operands are no group, are as they were: nobody need do anything."""


@dataclass(frozen=True)
class Remark:
    """What happened at one node, and why.

    Attributes:
        outcome: What became of what ends at `node`.
        node: The label of the join (or of the last node of a sequence) that the remark is about.
        message: A sentence that a user can act on; for a refusal it names the node that blocks.
        blocker: The label of the node that stands in the way; empty where none does.
        graph: The graph that holds the node: empty for the main graph, else `function domain:name` or
            the path of a subgraph.
        invalid: Whether the model is not valid, for what the message says: the commands refuse it.
        nodes: Labels of the nodes of a sequence that was left, in order; empty for a join.
        saving: What merging would save if nothing stood in the way, as a share of what the nodes concerned cost,
            by the cost model; negative where it would cost more, null where there is nothing to compare with.
    """

    outcome: Outcome
    node: str
    message: str
    blocker: str = ""
    graph: str = ""
    invalid: bool = False
    nodes: tuple[str, ...] = ()
    saving: float | None = None

    @property
    def sentence(self) -> str:
        """The message, and in words what merging would save."""
        if self.saving is None:
            return self.message
        but_for_that = "but for that, " if self.saving >= LITTLE else ""
        return f"{self.message}; {but_for_that}merging would {_in_words(self.saving)}"


@dataclass(frozen=True)
class Edit:
    """One change that was made to the model: nodes replaced by Convs (and the Adds that still join them).

    Or a HardSwish that was written as one node.

    Attributes:
        pattern: The name of the block family that the group matched.
        graph: The graph that was changed, as in `Remark`.
        source: The tensor that the replaced branches shared.
        output: The tensor that they computed; it keeps its name.
        removed: Labels of the nodes that the change made superfluous.
        added: Labels of the new nodes.
        kernel: The equivalent kernel in words, such as `3x3 64->64 stride 2`; empty where nothing was merged.
    """

    pattern: str
    graph: str
    source: str
    output: str
    removed: tuple[str, ...]
    added: tuple[str, ...]
    kernel: str


def by_outcome(remarks: Iterable[Remark], outcome: Outcome) -> list[Remark]:
    """Those of the remarks."""
    return [remark for remark in remarks if remark.outcome is outcome]


def _in_words(saving: float) -> str:
    """Such as `save 12 %`, or `cost 3.1 times as much`."""
    if abs(saving) < LITTLE:
        return "save nothing"
    if saving > 0:
        return f"save {100 * saving:.0f} %"
    factor = 1 - saving
    return f"cost {factor:.{2 if factor < 2 else 1 if factor < 10 else 0}f} times as much"


def refuse_invalid(name: str, remarks: Iterable[Remark]) -> None:
    """Refuse a model, which is called `name`, in which a node was found that makes no sense.

    Raises:
        BadInputError: It names the first such node.
    """
    for remark in remarks:
        if remark.invalid:
            place = f" in {remark.graph}" if remark.graph else ""
            raise BadInputError(
                f"{name}: not a sound model{place}: {remark.message}; look at the checkpoint, or export it again"
            )


def label(op_type: str, name: str, outputs: Iterable[str]) -> str:
    """Name a node for a person: its operator and its name, or what it computes where it has no name."""
    return f"{op_type} '{name}'" if name else f"{op_type} -> '{next(iter(outputs), '')}'"
