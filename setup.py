"""Metadata lives in pyproject.toml; this file is where the optional CUDA extension will be declared."""

from setuptools import setup

setup()
