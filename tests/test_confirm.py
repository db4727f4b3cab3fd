"""Which plan the whole model is fused by: all are measured at once, or in turn where there is no time for that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest

from repfuse.choice.plan import OWN, Plan
from repfuse.measures.confirm import Whole
from repfuse.measures.decide import Proposal
from repfuse.measures.interleave import Pace
from repfuse.measures.meter import Form
from repfuse.measures.ratios import Ratio
from repfuse.runtimes.backends import Backend


class Runtime:
    """Named, and not run."""

    name: ClassVar[str] = "ort"
    title: ClassVar[str] = "Runtime 1.0"

    def load(self, *_: object, **__: object) -> Any:
        raise NotImplementedError


class Scripted:
    """In the place of a meter: how many times faster each form is; a run of any takes so many seconds."""

    def __init__(self, ratios: Mapping[str, float], run: float = 0.0) -> None:
        self.ratios, self.run = ratios, run
        self.compared: list[str] = []
        self.known: set[str] = set()

    def pace(self, *_: object) -> Pace:
        return Pace(load=0.0, run=self.run)

    def knows(self, forms: Sequence[Form], _: Backend) -> bool:
        return "".join(form.digest for form in forms) in self.known

    def compare(self, forms: Sequence[Form], *_: object, **__: object) -> list[Ratio]:
        self.compared.append("".join(form.digest for form in forms))
        found = [self.ratios[form.digest] for form in forms[1:]]
        return [Ratio(ratio, ratio * 0.99, ratio * 1.01, 1.0) for ratio in found]


def plan(name: str) -> Plan:
    return Plan({("", name): OWN})


def confirm(meter: Scripted, digests: str, seconds: float, apart: Mapping[str, str] | None = None) -> str:
    """Of proposals by these digests, the one that is taken; `apart`: what each is with all taps in one Conv."""
    without = {digest: digest for digest in digests} | dict(apart or {})
    tried = [Proposal(plan(each), (plan(without[each]), plan(without[digests[-1]]))) for each in digests]
    whole = Whole(Form("", "."), [Runtime()], meter, dict)  # type: ignore[arg-type]
    found = whole.taken(tried, [Form("", digest) for digest in digests], seconds)
    return next(place[1] for place in found[0].made) if found else ""


@pytest.mark.parametrize(
    ("seconds", "compared"),
    [
        pytest.param(4 * 4 * 8 + 1, [".abc"], id="time for all: four models, four loadings, eight rounds"),
        pytest.param(3 * 4 * 8 + 1, [".ab"], id="time for two"),
        pytest.param(0, [".a"], id="none: the first, even so"),
    ],
)
def test_only_what_comes_first_is_measured_where_time_is_short(seconds: float, compared: list[str]) -> None:
    meter = Scripted({"a": 1.1, "b": 1.1, "c": 1.1}, run=1.0)
    assert confirm(meter, "abc", seconds) == "a"
    assert meter.compared == compared


@pytest.mark.parametrize(
    ("ratios", "taken", "compared"),
    [
        pytest.param((0.9, 1.1, 1.5), "b", [".a", ".b"], id="the next"),
        pytest.param((0.9, 0.9, 0.9), "", [".a", ".b", ".c"], id="none will do"),
    ],
)
def test_the_next_is_measured_where_the_first_will_not_do(
    ratios: Sequence[float], taken: str, compared: list[str]
) -> None:
    meter = Scripted(dict(zip("abc", ratios, strict=True)), run=1.0)
    assert confirm(meter, "abc", 0) == taken
    assert meter.compared == compared


@pytest.mark.parametrize(("seconds", "compared"), [(1000, [".abc"]), (0, [".ab"])])
def test_what_has_taps_apart_is_measured_beside_the_same_without(seconds: float, compared: list[str]) -> None:
    meter = Scripted({"a": 1.1, "b": 1.2, "c": 1.1}, run=1.0)
    assert confirm(meter, "abc", seconds, {"a": "b"}) == "b"
    assert meter.compared == compared


def test_what_was_measured_before_is_asked_for_as_it_was() -> None:
    meter = Scripted({"a": 1.1, "b": 1.3, "c": 1.1})
    meter.known = {".ab"}
    assert confirm(meter, "abc", 1000) == "b"
    assert meter.compared == [".ab"]


def test_what_the_cost_model_says_is_not_lost_to() -> None:
    meter = Scripted({"a": 1.1, "b": 1.12})
    assert confirm(meter, "ab", 1000) == "b"


@pytest.mark.parametrize(("forms", "taken"), [([None, "b"], "b"), ([".", "b"], "b"), ([None, "."], "")])
def test_what_changes_nothing_is_not_measured(forms: Sequence[str | None], taken: str) -> None:
    meter = Scripted({"b": 1.1})
    whole = Whole(Form("", "."), [Runtime()], meter, dict)  # type: ignore[arg-type]
    tried = [Proposal(plan(each), (plan(each), plan("b"))) for each in "ab"]
    found = whole.taken(tried, [Form("", each) if each else None for each in forms], 1000)
    assert (found[0] == plan(taken)) if found else not taken


def test_where_no_backend_runs_the_model_the_first_is_taken() -> None:
    meter = Scripted({})
    refuses: Callable[..., None] = lambda *_, **__: None  # noqa: E731
    meter.compare = refuses  # type: ignore[method-assign,assignment]
    assert confirm(meter, "ab", 1000) == "a"
