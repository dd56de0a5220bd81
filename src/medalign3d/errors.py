"""One error shape for the whole project: what is wrong, where, what was found, what was expected, what to do next."""

from __future__ import annotations


class MedAlignError(Exception):
    """An error that a user can act on.

    Parameters
    ----------
    what
        One clause that says what is wrong, e.g. ``"unknown parameter"``.
    where
        The place: a file, table row, column or parameter name. Never a participant's native id.
    found, expected
        What was there and what should have been there.
    remedy
        What to do next.

    Examples
    --------
    >>> print(MedAlignError("wrong value", where="params.yaml: model.queries", found="-3",
    ...                     expected="a whole number of at least 1", remedy="correct the value"))
    wrong value
      where:    params.yaml: model.queries
      found:    -3
      expected: a whole number of at least 1
      remedy:   correct the value
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        found: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.found = None if found is None else str(found)
        self.expected = None if expected is None else str(expected)
        self.remedy = remedy
        lines = [what]
        for label, value in (
            ("where", self.where),
            ("found", self.found),
            ("expected", self.expected),
            ("remedy", self.remedy),
        ):
            if value is not None:
                lines.append(f"  {label + ':':<9} {value}")
        super().__init__("\n".join(lines))


class ParameterError(MedAlignError):
    """A parameter is unknown, has the wrong type, or contradicts another one."""


class InputError(MedAlignError):
    """An input file or folder is missing, damaged or not what it claims to be."""


class MissingTable(InputError):
    """A clinical table that a cohort cannot do without was not found."""


class VolumeError(InputError):
    """An image cannot be used; ``reason`` is one of the quarantine reason codes.

    The pipeline catches it per image and quarantines the image with the reason.
    """

    def __init__(self, reason: str, what: str, **details: object) -> None:
        self.reason = reason
        super().__init__(what, **details)  # type: ignore[arg-type]


class CheckpointError(InputError):
    """A checkpoint is missing, damaged, or of another architecture."""
