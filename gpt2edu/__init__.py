"""GPT-2 (124M) trained from nothing on FineWeb: the package behind the book."""

__version__ = "0.1.0"
