"""Hand-written Numba CUDA kernels. Knows nothing of models, files, MPI or torch."""
