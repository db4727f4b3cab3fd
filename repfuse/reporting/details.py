"""What the page shows and nothing else needs: groups op by op, the schedule of activations, hashes of files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from repfuse.fusion import FuseResult
from repfuse.measures.schedule import Schedule, schedule_file
from repfuse.model import external, model_io
from repfuse.remarks import Edit, Outcome
from repfuse.reporting import anatomy
from repfuse.reporting.anatomy import Branch


@dataclass(frozen=True)
class Group:
    """A group that was fused.

    Attributes:
        edit: The change.
        before: Its ops as they were.
        after: The ops that took their place.
    """

    edit: Edit
    before: Branch
    after: Branch


@dataclass
class Details:
    """Filled in as far as a run comes.

    Attributes:
        groups: Each group that was fused.
        before: The original's schedule; None where nothing was fused.
        after: That of the fused model.
        hashes: The SHA-256 of each file, in hexadecimal, by what to call it.
    """

    groups: Sequence[Group] = ()
    before: Schedule | None = None
    after: Schedule | None = None
    hashes: dict[str, str] = field(default_factory=dict)

    def gather(
        self, source: Path, fused: Path, result: FuseResult, input_shapes: Mapping[str, Sequence[int]]
    ) -> None:
        """Look at the two files, before anything can go wrong with the second.

        Args:
            source: The original.
            fused: The fused model.
            result: What fusing gave; of the weights of its model, dims are enough.
            input_shapes: Extents for the inputs of these names.
        """
        told = anatomy.stories(source, result)
        fused_ones = [each for each in told if each.remark.outcome in (Outcome.FUSED, Outcome.REWRITTEN)]
        before = {(each.remark.graph, each.remark.node): each.whole for each in fused_ones}
        new = anatomy.replacements(result.model, result.edits)
        pairs = zip(result.edits, new, strict=True)
        self.groups = [Group(edit, before[edit.graph, edit.removed[-1]], after) for edit, after in pairs]
        self.before, self.after = (schedule_file(path, input_shapes=input_shapes) for path in (source, fused))

    def hash(self, path: Path) -> None:
        """Add the hash of a model's file, and of those in which it keeps tensors."""
        names = external.names(model_io.structure(path))
        self.hashes |= {str(file): _sha256(file) for file in (path, *(path.parent / name for name in names))}


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
