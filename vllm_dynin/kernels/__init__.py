"""Fused operations of the sampler, each beside its plain PyTorch reference."""
