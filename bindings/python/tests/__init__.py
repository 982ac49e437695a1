"""Tests of the package; run from the folder above."""
