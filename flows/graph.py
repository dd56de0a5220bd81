"""What DVC says there is to do: stages, which depends on which, and which are up to date.

DVC's Python interface is used for this planning only. Stages are run by ``dvc repro -s`` in processes of their own,
because several threads of one process that use the interface at once break each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medalign3d.errors import InputError


@dataclass(frozen=True)
class StageMeta:
    """What ``meta:`` of a stage in ``dvc.yaml`` says; unknown keys are somebody else's."""

    gpus: int = 0
    retries: int = 0
    retry_delay: float = 10.0


@dataclass(frozen=True)
class Stage:
    """A stage of ``dvc.yaml`` (one per matrix entry)."""

    name: str
    needs: tuple[str, ...]
    meta: StageMeta
    up_to_date: bool
    always_changed: bool


def read_meta(name: str, meta: Any) -> StageMeta:
    """Check the ``meta:`` of a stage.

    Raises
    ------
    InputError
        When a known key has a wrong value.
    """
    values = dict(meta or {})
    result = {}
    for key, kind, least in (("gpus", int, 0), ("retries", int, 0), ("retry_delay", float, 0)):
        if key not in values:
            continue
        value = values[key]
        if isinstance(value, bool) or not isinstance(value, int | kind) or value < least:
            raise InputError(
                "a stage's meta has a wrong value",
                where=f"dvc.yaml: {name}: meta.{key}",
                found=repr(value),
                expected=f"a number of at least {least}",
            )
        result[key] = kind(value)
    return StageMeta(**result)  # type: ignore[arg-type]


def _name(stage: Any) -> str:
    """A stage's name as ``dvc repro`` knows it in the workspace's folder (DVC's own depends on the current folder)."""
    file = Path(stage.path_in_repo).as_posix()
    return str(stage.name) if file == "dvc.yaml" else f"{file}:{stage.name}"


def _matches(name: str, target: str) -> bool:
    """Whether a target means a stage: its name, its matrix family (``tune`` for ``tune@t5``) or ``dvc.yaml:name``."""
    wanted = target.removeprefix("dvc.yaml:")
    return name == wanted or name.split("@")[0] == wanted


def plan(root: Path, targets: Sequence[str] = (), *, check: bool = True) -> list[Stage]:
    """The stages that ``targets`` need (default: all), dependencies first.

    Parameters
    ----------
    root
        The DVC workspace.
    targets
        Names of stages or matrix families; their dependencies come along.
    check
        Ask DVC what is up to date; without, nothing is.

    Raises
    ------
    InputError
        When a target is unknown or ``root`` is not a DVC workspace.
    """
    import networkx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        repo = Repo(str(root))
    except DvcException as error:
        raise InputError(
            "not a DVC workspace", where=root, found=error, remedy="run from the project's folder"
        ) from error
    try:
        graph = repo.index.graph  # edges lead from a stage to what it needs
        names = {stage: _name(stage) for stage in graph.nodes if getattr(stage, "cmd", None)}
        if targets:
            wanted: set[Any] = set()
            for target in targets:
                found = {stage for stage, name in names.items() if _matches(name, target)}
                if not found:
                    raise InputError(
                        "unknown stage",
                        found=target,
                        expected=", ".join(sorted({n.split("@")[0] for n in names.values()})),
                    )
                for stage in found:
                    wanted |= {stage, *networkx.descendants(graph, stage)}
            graph = graph.subgraph(wanted)
        reported = set(repo.status()) if check else set()
        order = list(networkx.lexicographical_topological_sort(graph.reverse(), key=lambda s: s.addressing))
        stages: list[Stage] = []
        dirty: set[str] = set()
        for node in order:
            if node not in names:
                continue
            name = names[node]
            # Stages without a command (imported data) only pass dependencies on.
            needs = sorted({names[other] for other in networkx.descendants(graph, node) if other in names})
            direct = sorted(names[other] for other in graph.successors(node) if other in names) or needs
            touched = (
                not check or node.addressing in reported or node.always_changed or any(need in dirty for need in needs)
            )
            if touched:
                dirty.add(name)
            stages.append(
                Stage(name, tuple(direct), read_meta(name, node.meta), not touched, bool(node.always_changed))
            )
        return stages
    except DvcException as error:
        raise InputError("DVC cannot read the pipeline", where=root / "dvc.yaml", found=error) from error
    finally:
        repo.close()
