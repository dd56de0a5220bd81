"""Scores of the tests of form version 3 on the scales of the tests that they replaced.

In March 2015 the Uniform Data Set replaced the MMSE by the MoCA, and Logical Memory by the Craft story. A crosswalk
study gave both batteries to the same people and lists the equivalent scores (Monsell et al., Alzheimer Dis Assoc Disord
2016;30:134-139). A converted score is an estimate: it is opt-in and always flagged ``crosswalk``.
"""

from __future__ import annotations

__all__ = ["lm_delayed_of_craft", "lm_immediate_of_craft", "mmse_of_moca"]

#: MMSE for a MoCA total of 1, 2, ... 30. The entry for 0 is not confirmed by a published source and left out.
_MMSE = (
    6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 19, 20, 21, 22, 22, 23, 24, 25, 26, 26, 27, 28, 28, 29, 29, 29, 30, 30, 30,
)  # fmt: skip
#: Logical Memory units for a Craft story paraphrase score of 0, 1, ... 25.
_LM_IMMEDIATE = (0, 0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23)
_LM_DELAYED = (0, 1, 3, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 19, 20, 21, 22, 23, 25)


def _entry(table: tuple[int, ...], score: float, first: int) -> float | None:
    position = int(score) - first
    if score != int(score) or not 0 <= position < len(table):
        return None
    return float(table[position])


def mmse_of_moca(moca: float) -> float | None:
    """The MMSE (0-30) equivalent to a MoCA total (1-30); None for any other number.

    >>> mmse_of_moca(17.0), mmse_of_moca(12), mmse_of_moca(0), mmse_of_moca(31)
    (23.0, 19.0, None, None)
    """
    return _entry(_MMSE, moca, 1)


def lm_immediate_of_craft(paraphrase: float) -> float | None:
    """Logical Memory, immediate recall, equivalent to a Craft story paraphrase score (0-25).

    >>> lm_immediate_of_craft(4), lm_immediate_of_craft(25), lm_immediate_of_craft(26)
    (2.0, 23.0, None)
    """
    return _entry(_LM_IMMEDIATE, paraphrase, 0)


def lm_delayed_of_craft(paraphrase: float) -> float | None:
    """Logical Memory, delayed recall, equivalent to a Craft story paraphrase score (0-25).

    >>> lm_delayed_of_craft(2), lm_delayed_of_craft(3), lm_delayed_of_craft(19), lm_delayed_of_craft(25)
    (3.0, 3.0, 18.0, 25.0)
    """
    return _entry(_LM_DELAYED, paraphrase, 0)
