"""Ablations: one thing is varied, every direction is measured, the page is written."""
