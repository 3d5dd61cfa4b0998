"""What `vllm-dynin demo` runs and shows."""
