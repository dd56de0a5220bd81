"""The model needs torch, transformers and peft, and nothing else that they do not bring along."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import medalign3d

ALLOWED = ("torch", "transformers", "peft")
PROGRAM = """
import importlib, pkgutil, sys
import medalign3d.model as package
for module in pkgutil.iter_modules(package.__path__):
    importlib.import_module(f"medalign3d.model.{module.name}")
import torch
from medalign3d.model.config import ModelConfig
from medalign3d.model.sub_volumes import SubVolumeEmbedding
config = ModelConfig((4, 4, 4), 1, 2, "", "", "")
assert SubVolumeEmbedding(config, torch.zeros(3))(torch.zeros(1, 1, 4, 4, 4)).shape == (1, 9, 3)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def _closure(names: tuple[str, ...]) -> set[str]:
    """Distributions that ``names`` require on this machine, themselves included."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # of another platform
        found.add(name)
        waiting += [re.split(r"[\s<>=!~;\[(]", line)[0] for line in requirements if "extra ==" not in line]
    return found


def _site_of(names: set[str], folder: Path) -> Path:
    """A site-packages folder that holds these distributions only."""
    folder.mkdir()
    for name in names:
        for file in metadata.files(name) or []:
            top = file.parts[0]
            source = Path(str(metadata.distribution(name).locate_file(top)))
            if top not in ("..", "__pycache__") and source.exists() and not (folder / top).exists():
                (folder / top).symlink_to(source)
    return folder


def test_importing_the_model_needs_three_packages(tmp_path: Path) -> None:
    site = _site_of(_closure(ALLOWED), tmp_path / "site")
    assert not (site / "ruamel").exists()
    own = Path(medalign3d.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(own), str(site)]), "PYTHONNOUSERSITE": "1"}
    # -S: the environment's own packages are out of sight.
    result = subprocess.run(
        [sys.executable, "-S", "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert result.returncode == 0, result.stderr[-2000:]
    loaded = result.stdout.split()
    assert {"torch", "transformers"} <= set(loaded)
    assert not {"pandas", "ruamel", "nibabel", "scipy", "sklearn", "dvc", "prefect", "mlflow"} & set(loaded)
