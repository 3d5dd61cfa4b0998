"""Shared by the tests: tiny checkpoints, request mixes, and a literal statement of Algorithm A."""
