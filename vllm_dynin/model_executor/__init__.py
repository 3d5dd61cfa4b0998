"""The vLLM side: model class, model state, scheduler and engine sampler."""
