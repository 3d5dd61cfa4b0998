"""Readers of media that reach the server: ours in the place of vLLM's, one file for each medium."""
