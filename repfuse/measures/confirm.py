"""The last word on a plan: whether the whole model is as fast with it.

All plans that are proposed are measured at once if there is time for that. Else only those are that come first, and
the others if none of them will do: no plan is taken that was not measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from repfuse.choice.plan import Plan
from repfuse.measures.decide import NEVER_BELOW, Proposal, Ratios, bearable, best, fair
from repfuse.measures.interleave import FEWEST_LOADS, LEAST_LOADS
from repfuse.measures.meter import Form, Meter
from repfuse.measures.ratios import Ratio
from repfuse.runtimes.backends import Backend, Feeds

_SECONDS = (0.1, 3.0)
"""Of timed rounds on one backend, at least and at most; the rest is for loading, and for measuring again."""

_ROUNDS = 0.5
"""Their share of the time."""


@dataclass(frozen=True)
class Whole:
    """A whole model, and how to measure it.

    Attributes:
        original: The model as it is.
        backends: Where to measure.
        meter: What measures and remembers.
        feed: Makes what to run the model on.
    """

    original: Form
    backends: Sequence[Backend]
    meter: Meter
    feed: Callable[[], Feeds]

    def least(self) -> float:
        """How many seconds it takes at least to measure one plan; the original is run to find out."""
        return self._expected(1, FEWEST_LOADS)

    def taken(
        self, proposals: Sequence[Proposal], forms: Sequence[Form | None], seconds: float
    ) -> tuple[Plan, Ratios] | None:
        """The first plan with which the model is slower nowhere, or one that is clearly faster.

        Args:
            proposals: What to try.
            forms: What each makes of the model; None where that is what it was.
            seconds: Time for all of it. It takes longer only where it does so for the plans that come first.
        """
        digests = [form.digest if form else self.original.digest for form in forms]
        plans = [proposal.plan for proposal in proposals]
        distinct = {form.digest: form for form in forms if form and form.digest != self.original.digest}
        first = {digest: proposals[digests.index(digest)] for digest in distinct}
        plain = {
            digest: [digests[plans.index(plan)] for plan in proposal.plain]
            for digest, proposal in first.items()
        }
        left, end = list(distinct), time.perf_counter() + seconds
        while left:
            # What has taps apart is not taken before it was measured without that, which comes next.
            at_least = 2 if plain[left[0]][0] in left[1:2] else 1
            count = self._count([distinct[each] for each in left], at_least, end - time.perf_counter())
            some, left = left[:count], left[count:]
            found = self._measured([distinct[each] for each in some], end)
            if not any(found.values()):  # no backend runs the model: there is only the cost model to go by
                return first[some[0]].plan, {}
            chosen = best(
                fair([each for each in found.items() if bearable(each[1])], plain.__getitem__), sure=True
            )
            if chosen:
                return first[chosen[0]].plan, chosen[1]
        return None

    def _count(self, forms: Sequence[Form], at_least: int, seconds: float) -> int:
        """How many of the forms there is time for at once; as many as were measured before, if any."""
        counts = range(len(forms), at_least - 1, -1)
        known = (count for count in counts if self._knows(forms[:count]))
        timely = (count for count in counts if self._expected(count, LEAST_LOADS) <= seconds)
        return next(known, None) or next(timely, at_least)

    def _knows(self, forms: Sequence[Form]) -> bool:
        return all(self.meter.knows([self.original, *forms], backend) for backend in self.backends)

    def _expected(self, count: int, loads: int) -> float:
        """Seconds that it takes at least to measure so many forms on all backends."""
        paces = (self.meter.pace(self.original, backend, self.feed) for backend in self.backends)
        return sum(pace.expected(1 + count, loads) for pace in paces if pace)

    def _measured(self, forms: Sequence[Form], end: float) -> Mapping[str, Ratios]:
        """By the digest of each form, how many times faster it is on each backend that runs the original."""
        found: dict[str, dict[str, Ratio]] = {form.digest: {} for form in forms}
        for number, backend in enumerate(self.backends):
            within = max(0.0, end - time.perf_counter()) / (len(self.backends) - number)
            ratios = self.meter.compare(
                [self.original, *forms],
                backend,
                self.feed,
                seconds=min(max(_ROUNDS * within, _SECONDS[0]), _SECONDS[1]),
                limit=NEVER_BELOW,
                within=within,
            )
            for each, ratio in zip(found.values(), ratios or (), strict=False):
                each[backend.title] = ratio
        return found
