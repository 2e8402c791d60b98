"""Extension logic only; the metadata stands in pyproject.toml. No CUDA extension is built yet."""

from setuptools import setup

setup()
