"""Training: objective, data, loop and recipes. Never imported by serving."""
