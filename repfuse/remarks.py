"""Remarks: what repfuse did and what it left alone, one sentence for each join or node.

They are a compiler's optimization remarks: a `Remark` names the node, tells whether it was fused, and if
not, which node stands in the way and why. `Edit` is the record of one change made to a model. The report
reads these two and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from repfuse.errors import BadInputError


class Outcome(str, Enum):
    """What became of a group of branches."""

    FUSED = "fused"
    REFUSED = "refused"


@dataclass(frozen=True)
class Remark:
    """What happened at one node, and why.

    Attributes:
        outcome: Whether the group that ends at `node` was fused.
        node: The label of the join (or of the last node of a chain) that the remark is about.
        message: A sentence that a user can act on; for a refusal it names the node that blocks.
        blocker: The label of the node that stands in the way; empty where none does.
        graph: The graph that holds the node: empty for the main graph, else `function domain:name` or
            the path of a subgraph.
        invalid: Whether the model is not valid, for what the message says: the commands refuse it.
    """

    outcome: Outcome
    node: str
    message: str
    blocker: str = ""
    graph: str = ""
    invalid: bool = False


@dataclass(frozen=True)
class Edit:
    """One change that was made to the model: nodes replaced by Convs (and the Adds that still join them).

    Attributes:
        pattern: The name of the block family that the group matched.
        graph: The graph that was changed, as in `Remark`.
        source: The tensor that the replaced branches shared.
        output: The tensor that they computed; it keeps its name.
        removed: Labels of the nodes that the change made superfluous.
        added: Labels of the new nodes.
        kernel: The equivalent kernel in words, such as `3x3 64->64 stride 2`.
    """

    pattern: str
    graph: str
    source: str
    output: str
    removed: tuple[str, ...]
    added: tuple[str, ...]
    kernel: str


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
