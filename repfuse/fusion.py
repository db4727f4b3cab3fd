"""The pass: find groups, choose, derive their kernels, patch the model, and say what was done and what not."""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from onnx import ModelProto

from repfuse.algebra.window import Refusal
from repfuse.choice.choose import Candidate, choose
from repfuse.choice.merges import Merge
from repfuse.choice.plan import SLOWER, Place, Plan, Region, place_of, regions
from repfuse.choice.settle import Refused, settle
from repfuse.errors import BadInputError, RepfuseError
from repfuse.families.expression import Spelled
from repfuse.families.patterns import Pattern, load_patterns, match, select, takes_any
from repfuse.graph.patch import Patch
from repfuse.graph.quantized import summarized
from repfuse.graph.view import Scope, scopes
from repfuse.model import convert, model_io, storage
from repfuse.model.nodes import read
from repfuse.model.storage import Spill
from repfuse.reasons.explain import refusals
from repfuse.remarks import Edit, Outcome, Remark
from repfuse.rewriting import hard_swish
from repfuse.rewriting.extents import write_out
from repfuse.rewriting.rewrite import rewrite
from repfuse.rewriting.topology import topology
from repfuse.search.groups import Groups

if TYPE_CHECKING:
    from repfuse.model.convert import Source

M = TypeVar("M")


LEFT = Refusal("was left alone, as was asked").reason
"""What the remark says of a group that `fuse` was told to leave."""


@dataclass(frozen=True)
class FuseResult:
    """What fusing gave.

    Attributes:
        model: The model with its groups fused.
        edits: What was changed, in the order of the graph.
        remarks: What was fused and what was left, and why.
    """

    model: ModelProto
    edits: tuple[Edit, ...]
    remarks: tuple[Remark, ...]

    @property
    def changed(self) -> bool:
        """Whether anything was fused; if not, `model` equals what came in."""
        return bool(self.edits)

    def like(self, model: M) -> M:
        """The fused model as the kind of model that `model` is, such as `onnx_ir.Model`.

        Raises:
            BadInputError: It is of no kind that is known.
        """
        return convert.like(self.model, model)


def fuse(
    model: Source,
    *,
    patterns: Sequence[str] | None = None,
    leave: Iterable[Edit] = (),
    plan: Plan | None = None,
    keep_opset: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> FuseResult:
    """Collapse every group of linear branches that is exact and cheaper as one Conv.

    Args:
        model: A model, which is not changed, or the path of one: an `onnx.ModelProto`, `onnx_ir.Model`,
            `onnx_graphsurgeon.Graph` or `torch.onnx.ONNXProgram`.
        patterns: Names of the block families to fuse, or paths of .toml files that describe some (see
            docs/patterns.md); all groups if None.
        leave: Edits of an earlier result that are not to be made this time; every other group is fused as it
            was then.
        plan: What `repfuse.tune` found out: the groups that are faster fused. Made of the same model, with the
            same `patterns`; None to decide by the cost model.
        keep_opset: Do not raise the version of the operator set, which is done where a HardSwish can be written as
            the operator that it is (opset 14), and only where no node comes to mean anything else.
        on_progress: Told, in a few words, what happens next.

    Raises:
        BadInputError: The model cannot be read or used, or there is no such pattern.
    """
    given = convert.proto(model)
    if not isinstance(given, ModelProto):
        result = fuse_file(
            given,
            None,
            patterns=patterns,
            leave=leave,
            plan=plan,
            keep_opset=keep_opset,
            on_progress=on_progress,
        )
        storage.fill(result.model)
        return result
    known = _known(patterns)
    model_io.check(given, "the model")
    how = _Choice(known, plan, frozenset(map(_place, leave)), keep_opset)
    own = copy.deepcopy(given) if given is model else given
    return _fuse_in_place(own, "the model", None, how, on_progress or _silent)


def fuse_file(
    path: str | PathLike[str],
    spill: Spill | None,
    *,
    patterns: Sequence[str] | None = None,
    leave: Iterable[Edit] = (),
    plan: Plan | None = None,
    keep_opset: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> FuseResult:
    """Do the same, and leave weights where they are.

    Args:
        path: The model's file.
        spill: Takes the weights that are made; None for keeping them in memory.
        patterns: As for `fuse`.
        leave: As for `fuse`.
        plan: As for `fuse`.
        keep_opset: As for `fuse`.
        on_progress: As for `fuse`.

    Returns:
        In the place of large weights the model has notes (see `model.storage`), for `model.model_io.write`.

    Raises:
        BadInputError: As for `fuse`.
    """
    known = _known(patterns)
    say = on_progress or _silent
    say(f"reading {fspath(path)}")
    how = _Choice(known, plan, frozenset(map(_place, leave)), keep_opset)
    return _fuse_in_place(model_io.read(path), fspath(path), spill, how, say)


def regions_of(model: ModelProto, *, patterns: Sequence[str] | None = None) -> list[Region]:
    """The regions of all graphs of a model in which something may be fused, and the alternatives in each."""
    known = _known(patterns)
    found = []
    for scope in scopes(model):
        groups = Groups(scope)
        found += regions(groups, _Families(known, groups).has)
    return found


@dataclass(frozen=True)
class _Choice:
    """What a caller says of which groups to fuse."""

    known: Sequence[Pattern]
    plan: Plan | None
    left: frozenset[Place]
    keep_opset: bool

    @property
    def takes_any(self) -> bool:
        """Whether all is to be fused, of a block family or not."""
        return takes_any(self.known)

    def why_left(self, place: Place) -> str:
        """Why a group that was chosen is left alone; empty where it is not."""
        if place in self.left:
            return LEFT
        return SLOWER if self.plan and place in self.plan.left else ""

    def wants(self, graph: str, output: str) -> bool:
        """Whether what computes a tensor may be changed."""
        return not self.why_left((graph, output))


def _place(edit: Edit) -> Place:
    return edit.graph, edit.output


def _silent(_: str) -> None:
    """Say nothing."""


def _known(patterns: Sequence[str] | None) -> Sequence[Pattern]:
    known = load_patterns([name for name in patterns or () if _is_file(name)])
    if patterns:
        known = select(known, [Path(name).stem if _is_file(name) else name for name in patterns])
    return known


def _is_file(pattern: str) -> bool:
    return pattern.endswith(".toml")


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Pause the collector of cycles, which would look at each object of all modules again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_uncollected()
def _fuse_in_place(
    model: ModelProto,
    name: str,
    spill: Spill | None,
    how: _Choice,
    say: Callable[[str], None],
) -> FuseResult:
    """Fuse a model, which is called `name` where it is found to be invalid."""
    try:
        graphs = scopes(model)
        model_io.refuse_invalid(model, name, graphs[0].nodes)
        return _fused_in_place(model, graphs, spill, how, say)
    except RepfuseError:
        raise
    except UnicodeDecodeError as error:
        raise BadInputError(f"{name}: not a valid ONNX model: a text in it is not UTF-8") from error
    except Exception:
        model_io.refuse_invalid(model, name, read(model.graph.node), strictly=True)
        raise


def _fused_in_place(
    model: ModelProto,
    graphs: Sequence[Scope],
    spill: Spill | None,
    how: _Choice,
    say: Callable[[str], None],
) -> FuseResult:
    whole = hard_swish.write(model, graphs, how.wants, keep_opset=how.keep_opset) if how.takes_any else []
    edits = [each for each in whole if isinstance(each, Edit)]
    remarks = [each if isinstance(each, Remark) else _told(each) for each in whole]
    if edits:
        graphs = scopes(model)
    patch = Patch(model, graphs, spill)
    for scope in graphs:
        say("finding groups")
        groups = Groups(scope)
        families = _Families(how.known, groups)
        maker = _Maker(groups, how, families, patch, say)
        settled = settle(groups, maker.choose, families.has, maker.make)
        made = [each.candidate for each in settled if isinstance(each.outcome, Edit)]
        for outcome in (each.outcome for each in settled):
            remarks.append(outcome if isinstance(outcome, Remark) else _told(outcome))
            if isinstance(outcome, Edit):
                edits.append(outcome)
        gone = {position for candidate in made for position in candidate.replaced}
        write_out(groups, gone, patch)
        left_alone = refusals(groups, [each.candidate for each in settled], made, families.has)
        remarks += summarized(scope, left_alone, fused=bool(made))
    if edits:
        patch.apply()
    return FuseResult(model, tuple(edits), tuple(remarks))


@dataclass(frozen=True)
class _Maker:
    """Chooses the groups of one graph and makes them."""

    groups: Groups
    how: _Choice
    families: _Families
    patch: Patch
    say: Callable[[str], None]

    def choose(self, fits: Callable[[Merge], bool]) -> list[Candidate]:
        chosen = (self.how.plan.choose if self.how.plan else choose)(self.groups, fits)
        self.say(f"merging {len(chosen)} groups")
        return chosen

    def make(self, candidate: Candidate) -> Edit | Refused:
        if reason := self.how.why_left(place_of(self.groups, candidate)):
            name, label = self.groups.scope.name(candidate.root), self.groups.scope.label
            saving = None if reason == SLOWER else candidate.saving
            return Refused(Remark(Outcome.REFUSED, name, reason, graph=label, saving=saving))
        made = rewrite(self.groups, candidate, self.families.names(candidate.merges), self.patch)
        if isinstance(made, Edit):
            return made
        return replace(made, remark=replace(made.remark, saving=candidate.saving))


class _Families:
    """Which block family each merge is of; a merge of none of those wanted is not made."""

    def __init__(self, known: Sequence[Pattern], groups: Groups) -> None:
        self._known = known
        self._takes_any = takes_any(known)
        self._groups = groups
        self._found: dict[Merge, Pattern | None] = {}
        self._spelled: dict[Spelled, Pattern | None] = {}

    def of(self, merge: Merge) -> Pattern | None:
        if merge not in self._found:
            shape = topology(self._groups, merge)
            if shape.spelled not in self._spelled:  # networks repeat their blocks
                self._spelled[shape.spelled] = match(self._known, shape)
            self._found[merge] = self._spelled[shape.spelled]
        return self._found[merge]

    def has(self, merge: Merge) -> bool:
        return self._takes_any or self.of(merge) is not None

    def names(self, merges: Sequence[Merge]) -> str:
        return ", ".join(sorted({pattern.name for merge in merges if (pattern := self.of(merge))}))


def _told(edit: Edit) -> Remark:
    outcome = Outcome.FUSED if edit.kernel else Outcome.REWRITTEN
    became = ", ".join(filter(None, (" and ".join(edit.added), edit.kernel)))
    message = f"{edit.pattern}: {len(edit.removed)} nodes became {became}"
    return Remark(outcome, edit.removed[-1], message, graph=edit.graph)
