"""What is shipped with every reported number: profile, simulated or real, split, commit, definitions of the metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medalign3d.errors import InputError
from medalign3d.evaluation.metrics import METRICS_VERSION
from medalign3d.files import sha256_file, sha256_json
from medalign3d.params import Params
from medalign3d.tracking import git_commit

SIMULATED_WORDS = "SIMULATED people and scans: these numbers say nothing about real patients"


@dataclass(frozen=True)
class Provenance:
    """Where numbers come from."""

    profile: str
    simulated: bool
    mode: str
    split_sha256: str
    commit: str
    params_sha256: str
    metrics_version: str

    @property
    def footer(self) -> str:
        """One line that stands under every table and figure."""
        people = "simulated" if self.simulated else "real people"
        return (
            f"Profile {self.profile} ({people}); {self.mode.replace('_', '-')} split {self.split_sha256[:12]}; commit "
            f"{self.commit[:12]}{' (modified)' if self.commit.endswith('(modified)') else ''}; parameters "
            f"{self.params_sha256[:12]}; metric definitions {self.metrics_version}"
        )

    def benchmark_label(self, benchmark: str) -> str:
        """A benchmark's name as tables show it: simulated ones always carry the prefix ``SIM-``, real ones never."""
        return f"SIM-{benchmark}" if self.simulated else benchmark

    def title(self, text: str) -> str:
        """A title that says so when people are simulated."""
        return f"{text} (SIMULATED people)" if self.simulated else text


def collect(params: Params, root: Path = Path(".")) -> Provenance:
    """Collect the provenance of the outputs under ``root``.

    Raises
    ------
    InputError
        When there is no split.
    """
    assignment = root / "data/splits/assignment.csv"
    if not assignment.is_file():
        raise InputError("no split", where=assignment, remedy="run `dvc repro` to make it")
    return Provenance(
        profile=params.profile,
        simulated=params.simulated,
        mode=params.split.mode,
        split_sha256=sha256_file(assignment),
        commit=git_commit(root),
        params_sha256=sha256_json(params.model_dump(mode="json")),
        metrics_version=METRICS_VERSION,
    )
