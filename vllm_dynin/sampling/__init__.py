"""Masked-diffusion decoding as pure functions, shared by the engine and the reference driver."""
