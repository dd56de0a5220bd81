"""Two processes (gloo) take the same steps as one with the same batch, and stop and resume together."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from medalign3d.errors import ParameterError
from medalign3d.params import Params
from medalign3d.training import loop
from medalign3d.training.distributed import Processes, share

_SCRIPT = """
import json
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from medalign3d.params import load_params
from medalign3d.training import loop, runs
from medalign3d.training.data import TrainingData
from medalign3d.training.distributed import Processes

torch.set_num_threads(1)
processes = Processes(torch.device("cpu"))
params = load_params("params.yaml")
data = TrainingData.from_files(params, 0)
model = runs.make_model(params, "gpt2", data, 7)
model.add_lora(model.config.lora)
for module in model.modules():  # its pattern depends on who holds a sample
    if isinstance(module, torch.nn.Dropout):
        module.p = 0.0
out = Path(sys.argv[1])
out.mkdir(exist_ok=True)
# Gradients of the first step: AdamW would blow up the rounding of those that are zero but for it.
parts = processes.shares(params.pretrain.batch_size, params.pretrain.accumulation)
batch = data.batch(0, [slot for part in parts for slot in part])
model.train()
loop._accumulate(model, batch, params.pretrain, processes.device, parts)
trainables = model.trainable_parameters()
processes.average_gradients(list(trainables.values()))
if processes.first:
    gradients = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in trainables.items()}
    save_file(gradients, out / "gradients.safetensors")
model.zero_grad()
result = loop.train(
    model, data, params.pretrain, seed=7, device=processes.device, label="test", processes=processes,
    scratch=Path(sys.argv[1] + "-scratch"),
)
if processes.first:
    model.save(Path(sys.argv[1]))
    (Path(sys.argv[1]) / "history.json").write_text(json.dumps(result.history))
"""


def test_shares_are_whole_and_nobody_goes_without() -> None:
    for count in range(1, 30):
        for parts in range(1, count + 1):
            found = [list(share(count, parts, number)) for number in range(parts)]
            assert list(itertools.chain(*found)) == list(range(count))
            assert max(map(len, found)) - min(map(len, found)) <= 1
    processes = Processes(torch.device("cpu"))
    assert processes.shares(5, 2) == [range(3), range(3, 5)]
    with pytest.raises(ParameterError, match="cannot be divided"):
        processes.shares(2, 3)


def _place(params: Params, in_project: Path, place: Path, **changes: object) -> Path:
    recipe = params.model_copy(update={"pretrain": params.pretrain.model_copy(update=changes)})
    place.mkdir()
    with (place / "params.yaml").open("w") as stream:
        YAML().dump(recipe.model_dump(mode="json"), stream)
    (place / "data").symlink_to((in_project / "data").resolve())
    (place / "script.py").write_text(_SCRIPT)
    return place


def _start(place: Path, processes: int, out: str) -> subprocess.Popen[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(loop.__file__).parents[2])}
    command = [sys.executable, *(launcher if processes > 1 else []), "script.py", out]
    return subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _compare(place: Path, first: str, second: str) -> None:
    one, two = (json.loads((place / name / "history.json").read_text()) for name in (first, second))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=5e-3, abs=1e-4)
    gradients = [load_file(place / name / "gradients.safetensors") for name in (first, second)]
    assert gradients[0].keys() == gradients[1].keys()
    assert sum(bool(value.any()) for value in gradients[0].values()) > 40
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-4, atol=5e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (7, 2)])
def test_two_processes_take_the_steps_of_one(
    in_project: Path, params: Params, tmp_path: Path, batch_size: int, accumulation: int
) -> None:
    """Uneven shares, samples without a text, contrastive negatives of both processes, adapters."""
    place = _place(
        params, in_project, tmp_path / "place", steps=6, validate_every=3, batch_size=batch_size,
        accumulation=accumulation, text_dropout=0.5, learning_rate=1e-3,
    )  # fmt: skip
    for processes, out in ((1, "one"), (2, "two")):
        process = _start(place, processes, out)
        said = process.communicate(timeout=240)[0]
        assert process.returncode == 0, said
    _compare(place, "one", "two")


@pytest.mark.slow
def test_two_processes_stop_and_go_on_together(in_project: Path, params: Params, tmp_path: Path) -> None:
    place = _place(
        params, in_project, tmp_path / "place", steps=80, validate_every=40, batch_size=8, checkpoint_every=5
    )
    whole = _start(place, 2, "whole")
    assert whole.wait(240) == 0, whole.communicate()[0]
    process = _start(place, 2, "stopped")
    until = time.monotonic() + 120
    while not list((place / "stopped-scratch").glob("step-*")) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert list((place / "stopped-scratch").glob("step-*"))
    again = _start(place, 2, "stopped")
    said = again.communicate(timeout=240)[0]
    assert again.returncode == 0, said
    first, second = (load_file(place / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(first[name], second[name]) for name in first)
