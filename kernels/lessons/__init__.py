"""Kernels that only the book shows: first steps, and mistakes. No training step uses them."""
