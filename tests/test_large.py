"""Models above protobuf's limit of 2 GB, for real; the rest of what size means is in test_storage.py.

Made only where REPFUSE_LARGE is set, since it takes 10 GB on the disk and a minute.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from repfuse.jobs import pipeline

CHANNELS = 2048
BLOCKS = 20

# Peak memory of the pass, above what is there after imports, and its time.
PASS = """
import sys, time
from pathlib import Path
from repfuse.jobs import pipeline; from repfuse.runtimes import backends
from repfuse.commandline.cli import main


def status(key):
    return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0]) * 1024


before, started = status("VmRSS"), time.monotonic()
main([*sys.argv[1:], "--no-bench", "-q"], standalone_mode=False)
print(status("VmHWM") - before, time.monotonic() - started)
"""


def block(name: str, x: str, y: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Conv", [x, f"{name}.w3"], [f"{name}.a"], f"{name}.conv3", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", [x, f"{name}.w1"], [f"{name}.b"], f"{name}.conv1"),
        helper.make_node("Add", [f"{name}.a", f"{name}.b"], [f"{name}.s"], f"{name}.join"),
        helper.make_node("Relu", [f"{name}.s"], [y], f"{name}.relu"),
    ]


def write_large(path: Path) -> int:
    """RepConv blocks with random weights in a file beside the model; gives its size."""
    random = np.random.default_rng(0)
    tensors = []
    with path.with_suffix(".data").open("wb") as data:
        for number in range(BLOCKS):
            for k in (3, 1):
                tensor = TensorProto(name=f"{number}.w{k}", data_type=TensorProto.FLOAT)
                tensor.dims[:] = (CHANNELS, CHANNELS, k, k)
                tensor.data_location = TensorProto.EXTERNAL
                offset = data.tell()
                values = random.standard_normal(tensor.dims, np.float32)
                values *= 1 / np.sqrt(values[0].size)
                data.write(values.tobytes())
                for key, value in (
                    ("location", path.stem + ".data"), ("offset", offset), ("length", data.tell() - offset)
                ):  # fmt: skip
                    tensor.external_data.add(key=key, value=str(value))
                tensors.append(tensor)
        size = data.tell()
    names = ["x", *(f"y{number}" for number in range(BLOCKS - 1)), "y"]
    nodes = [node for i in range(BLOCKS) for node in block(str(i), names[i], names[i + 1])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, CHANNELS, 4, 4)) for name in "xy"]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], tensors)
    path.write_bytes(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        ).SerializeToString()
    )
    return size


@pytest.mark.skipif("REPFUSE_LARGE" not in os.environ, reason="REPFUSE_LARGE is not set")
def test_three_gigabytes(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 15e9:
        pytest.skip("there is no room on the disk")
    size = write_large(tmp_path / "in.onnx")
    assert size > 3e9
    group = CHANNELS**2 * (9 + 1) * 4
    for flags, room in ((["--no-verify"], 12 * group), (["--backend", "ort"], 0)):
        result = subprocess.run(
            [sys.executable, "-c", PASS, "in.onnx", "out.onnx", *flags],
            check=False, cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(pipeline.__file__).parents[1])},
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        peak, seconds = map(float, result.stdout.split())
        print(f"{flags}: {size / 1e9:.2f} GB, peak {peak / 1e9:.2f} GB ({peak / size:.2f}), {seconds:.0f} s")
        assert not room or peak < room
        assert (tmp_path / "out.onnx.data").stat().st_size > 2e9
        assert len(onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.node) == 2 * BLOCKS
