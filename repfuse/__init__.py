"""repfuse collapses the parallel linear branches of an ONNX model into single convolutions, and proves it.

The public API is what `__all__` lists. It is imported when first used, so that importing repfuse is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repfuse.backends import BackendError
    from repfuse.batching import BatchRecord, batch
    from repfuse.bench import Benchmark, benchmark
    from repfuse.blockcheck import BlockCheck, check_blocks
    from repfuse.errors import BadInputError, RepfuseError, VerificationError
    from repfuse.fusion import FuseResult, fuse
    from repfuse.plan import Plan
    from repfuse.remarks import Edit, Outcome, Remark
    from repfuse.tuning import Trial, Tuning, tune
    from repfuse.verification import Verification, verify

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
    "repfuse.backends": ("BackendError",),
    "repfuse.batching": ("BatchRecord", "batch"),
    "repfuse.bench": ("Benchmark", "benchmark"),
    "repfuse.blockcheck": ("BlockCheck", "check_blocks"),
    "repfuse.errors": ("BadInputError", "RepfuseError", "VerificationError"),
    "repfuse.fusion": ("FuseResult", "fuse"),
    "repfuse.plan": ("Plan",),
    "repfuse.remarks": ("Edit", "Outcome", "Remark"),
    "repfuse.tuning": ("Trial", "Tuning", "tune"),
    "repfuse.verification": ("Verification", "verify"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'repfuse' has no attribute '{name}'")
