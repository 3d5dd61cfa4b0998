"""CUDA C++ of the kernels, and how it is compiled."""
