"""repfuse collapses the parallel linear branches of an ONNX model into single convolutions, and proves it.

The public API is what `__all__` lists. It is imported when first used, so that importing repfuse is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repfuse.choice.plan import Plan
    from repfuse.errors import BadInputError, RepfuseError, VerificationError
    from repfuse.fusion import FuseResult, fuse
    from repfuse.jobs.batching import BatchRecord, batch
    from repfuse.measures.bench import Benchmark, benchmark
    from repfuse.measures.tuning import Trial, Tuning, tune
    from repfuse.proof.blockcheck import BlockCheck, check_blocks
    from repfuse.proof.verification import Verification, verify
    from repfuse.remarks import Edit, Outcome, Remark
    from repfuse.runtimes.backends import BackendError

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "BadInputError",
    "BatchRecord",
    "Benchmark",
    "BlockCheck",
    "Edit",
    "FuseResult",
    "Outcome",
    "Plan",
    "Remark",
    "RepfuseError",
    "Trial",
    "Tuning",
    "Verification",
    "VerificationError",
    "batch",
    "benchmark",
    "check_blocks",
    "fuse",
    "tune",
    "verify",
]

_HOMES = {
    "repfuse.runtimes.backends": ("BackendError",),
    "repfuse.jobs.batching": ("BatchRecord", "batch"),
    "repfuse.measures.bench": ("Benchmark", "benchmark"),
    "repfuse.proof.blockcheck": ("BlockCheck", "check_blocks"),
    "repfuse.errors": ("BadInputError", "RepfuseError", "VerificationError"),
    "repfuse.fusion": ("FuseResult", "fuse"),
    "repfuse.choice.plan": ("Plan",),
    "repfuse.remarks": ("Edit", "Outcome", "Remark"),
    "repfuse.measures.tuning": ("Trial", "Tuning", "tune"),
    "repfuse.proof.verification": ("Verification", "verify"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'repfuse' has no attribute '{name}'")
