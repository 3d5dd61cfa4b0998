"""The commands of `vllm-dynin`, one a file."""
