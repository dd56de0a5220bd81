"""Volumes: any T1-weighted head -> a brain in MNI space on one grid, as uint8.

The way of an image: :mod:`read` (file -> array and affine) -> :mod:`normalize` (orient, :mod:`register`, :mod:`bias`,
:mod:`mask`, :mod:`intensity`, :mod:`quality`) -> :mod:`store`. :mod:`volumetry` measures regional volumes in
millilitres, :mod:`regions` reads crude regional values off the result, :mod:`pictures` draws it, :mod:`pool` runs many
at once.
"""
