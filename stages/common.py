"""What every stage does around its one call of the library: quiet third parties, typed parameters, readable errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

# A stage starts processes of one thread each; more threads than cores only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from medalign3d import quiet
from medalign3d.errors import InputError, MedAlignError
from medalign3d.params import COHORT_NAMES, Params, load_params

DATA = Path("data")


def cohort_argument() -> str:
    """The cohort named on the command line."""
    if len(sys.argv) != 2 or sys.argv[1] not in COHORT_NAMES:
        raise InputError(
            "a stage needs one cohort",
            where=sys.argv[0],
            found=" ".join(sys.argv[1:]) or "nothing",
            expected=f"one of {', '.join(COHORT_NAMES)}",
        )
    return sys.argv[1]


def language_model_argument(params: Params) -> str:
    """The language model named on the command line."""
    known = params.language_models
    if len(sys.argv) != 2 or sys.argv[1] not in known:
        raise InputError(
            "a stage needs one language model",
            where=sys.argv[0],
            found=" ".join(sys.argv[1:]) or "nothing",
            expected=f"one of {', '.join(known)}",
        )
    return sys.argv[1]


def run_stage(main: Callable[[Params], None]) -> None:
    """Run ``main`` with the validated parameters; an error that a user can act on is printed without a traceback."""
    quiet.apply()
    try:
        main(load_params())
    except MedAlignError as error:
        print(f"\n{error}\n", file=sys.stderr)
        sys.exit(1)
