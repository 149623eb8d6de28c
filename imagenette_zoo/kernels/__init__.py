"""Kernels in C++ and Triton; they know no layer."""
