"""Serve masked-diffusion omnimodal models (Dynin-Omni, MMaDA, LLaDA) on stock vLLM."""
