"""Tests of the package pollux."""
