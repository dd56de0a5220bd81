"""MedAlign-3D: diagnosis of Alzheimer's disease as text generation from a T1 brain volume and the health record."""

__version__ = "0.1.0"
