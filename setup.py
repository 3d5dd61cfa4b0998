"""Metadata is in pyproject.toml; this file is where the optional CUDA extension is declared."""

from setuptools import setup

setup()
