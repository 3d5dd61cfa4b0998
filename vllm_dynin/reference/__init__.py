"""The same transformer and decoding in plain PyTorch, without vLLM: the oracle."""
