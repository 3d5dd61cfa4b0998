"""Discrete tokenizers of one medium each: encode and decode side by side."""
