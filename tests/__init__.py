"""Tests of dpipe: they mirror the package, file for file."""
