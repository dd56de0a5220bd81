"""Switch between profiles: the same code on simulated people, on real people, and at full size.

``params.yaml`` holds the active profile in full, so that every run is explained by one file. The `demo` profile is the
base; ``profiles/NAME.yaml`` holds only what differs. Switching writes ``params.yaml`` anew and takes away the outputs
of cohorts and language models that the new profile does not have (DVC's cache keeps them: switching back restores
them without running anything).
"""

from __future__ import annotations

import io
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from medalign3d.errors import InputError, ParameterError
from medalign3d.files import remove, write_text
from medalign3d.params import Params, parse_yaml, validate_params

DEMO = "demo"
STATE = Path(".medalign3d")

# Dictionaries whose keys are names: a profile replaces them whole, since half a list of cohorts or benchmarks is none.
REPLACED_WHOLE = {
    ("simulate", "participants"),
    ("external", "roots"),
    ("ingest", "match_window_days"),
    ("split", "benchmarks"),
    ("model", "language", "models"),
}


def available_profiles(project: Path = Path(".")) -> list[str]:
    """Names of the profiles, the demo first."""
    return [DEMO, *sorted(path.stem for path in (project / "profiles").glob("*.yaml"))]


def _merge(base: Any, overrides: Mapping[str, Any], location: tuple[str, ...], unknown: list[str]) -> None:
    for key, value in overrides.items():
        here = (*location, key)
        if key not in base:
            unknown.append(".".join(here))
        elif isinstance(value, Mapping) and isinstance(base[key], Mapping) and here not in REPLACED_WHOLE:
            _merge(base[key], value, here, unknown)
        else:
            base[key] = value


def _flow_lists(value: Any) -> Any:
    """Write short lists and dictionaries of a profile on one line, as params.yaml does."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    if isinstance(value, Mapping):
        mapping = CommentedMap({key: _flow_lists(item) for key, item in value.items()})
        if not any(isinstance(item, Mapping | list) for item in value.values()):
            mapping.fa.set_flow_style()
        return mapping
    if isinstance(value, list):
        sequence = CommentedSeq([_flow_lists(item) for item in value])
        sequence.fa.set_flow_style()
        return sequence
    return value


def merge_profile(base_text: str, overrides: Mapping[str, Any], name: str) -> str:
    """The text of ``params.yaml`` for profile ``name``: the demo's text, comments kept, with ``overrides`` in place.

    Raises
    ------
    ParameterError
        When the profile names a parameter that the demo does not have.
    """
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    base = editor.load(base_text)
    unknown: list[str] = []
    _merge(base, _flow_lists(overrides), (), unknown)
    if unknown:
        raise ParameterError(
            "a profile names parameters that do not exist",
            where=f"profiles/{name}.yaml",
            found=", ".join(unknown),
            expected="keys of params.yaml",
        )
    base["profile"] = name
    stream = io.StringIO()
    editor.dump(base, stream)
    return stream.getvalue()


def _demo_text(project: Path) -> str:
    """The demo's ``params.yaml``: the file itself, or what was saved when it was left, or what git has."""
    text = (project / "params.yaml").read_text(encoding="utf-8")
    if parse_yaml(text).get("profile") == DEMO:
        return text
    saved = project / STATE / f"params.{DEMO}.yaml"
    if saved.exists():
        return saved.read_text(encoding="utf-8")
    answer = subprocess.run(
        ["git", "show", "HEAD:./params.yaml"], cwd=project, capture_output=True, text=True, check=False
    )
    if answer.returncode == 0 and parse_yaml(answer.stdout).get("profile") == DEMO:
        return answer.stdout
    raise ParameterError(
        "the demo's parameters cannot be found",
        where=f"{saved}, and git's last commit of params.yaml",
        remedy="put the project's original params.yaml back, then switch again",
    )


def build_profile(name: str, data: Mapping[str, str] | None = None, project: Path = Path(".")) -> tuple[str, Params]:
    """The text and the validated parameters of profile ``name``.

    Parameters
    ----------
    name
        ``demo`` or the stem of a file in ``profiles/``.
    data
        Cohort name to folder: where the user keeps the files (replaces ``external.roots`` entry by entry).
    project
        The project's folder.

    Raises
    ------
    ParameterError
        When the profile is unknown or the result is not valid; all errors are named.
    """
    known = available_profiles(project)
    if name not in known:
        raise ParameterError("unknown profile", where="medalign3d profile", found=name, expected=", ".join(known))
    base = _demo_text(project)
    overrides: dict[str, Any] = {}
    if name != DEMO:
        path = project / "profiles" / f"{name}.yaml"
        try:
            overrides = parse_yaml(path.read_text(encoding="utf-8")) or {}
        except YAMLError as error:
            raise ParameterError("a profile is not YAML", where=path, found=str(error)) from error
    if data:
        external = overrides.get("external", {}).get("cohorts", [])
        wrong = sorted(set(data) - set(external))
        if wrong:
            raise ParameterError(
                "a data folder is given for a cohort that this profile does not read from your disk",
                where=f"medalign3d profile {name} --data",
                found=", ".join(wrong),
                expected=f"one of {', '.join(external) or 'none (this profile simulates its cohorts)'}",
            )
        overrides["external"].setdefault("roots", {}).update(data)
    text = merge_profile(base, overrides, name) if name != DEMO else base
    return text, validate_params(parse_yaml(text), source=f"params.yaml of profile {name}", text=text)


def _drop_stale_outputs(params: Params, data: Path) -> list[Path]:
    """Remove outputs of cohorts and language models that the profile does not have; they stay in DVC's cache."""
    stale: list[Path] = []
    for folder in ("raw", "truth", "cohorts", "volumes"):
        wanted = set(params.simulate.cohorts) if folder == "raw" else set(params.cohorts)
        parent = data / folder
        if parent.is_dir():
            stale += [path for path in parent.iterdir() if path.is_dir() and path.name not in wanted]
    if (data / "manifests").is_dir():
        stale += [path for path in (data / "manifests").glob("*.json") if path.stem not in set(params.cohorts)]
    models = {*params.language_models, "vision", "baselines", "vqa"}
    for folder in ("models", "evaluation"):
        if (data / folder).is_dir():
            stale += [path for path in (data / folder).iterdir() if path.is_dir() and path.name not in models]
    for path in stale:
        remove(path)
    return stale


def switch_profile(name: str, data: Mapping[str, str] | None = None, project: Path = Path(".")) -> Params:
    """Make ``name`` the active profile by writing ``params.yaml``; see the module's description.

    A ``params.yaml`` of another profile that was edited by hand is kept as ``.medalign3d/params.PROFILE.yaml``.

    Raises
    ------
    ParameterError
        When the profile is unknown or not valid; ``params.yaml`` is then left as it is.
    InputError
        When there is no ``params.yaml`` here.
    """
    current = project / "params.yaml"
    if not current.is_file():
        raise InputError("no params.yaml here", where=project.absolute(), remedy="run from the project's folder")
    text, params = build_profile(name, data, project)
    active = parse_yaml(current.read_text(encoding="utf-8")).get("profile", DEMO)
    write_text(project / STATE / f"params.{active}.yaml", current.read_text(encoding="utf-8"))
    write_text(current, text)
    _drop_stale_outputs(params, project / "data")
    return params
