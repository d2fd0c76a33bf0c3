"""Measurements of this project, kept beside its tests: nothing here is imported by the package."""
