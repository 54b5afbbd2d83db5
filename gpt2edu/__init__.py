"""GPT-2 (124M) trained from nothing on FineWeb: the package behind the book."""

import os

__version__ = "0.1.0"

# Waiting threads of torch's products on the processor sleep instead of spinning: where other programs want the cores as
# well, a training step is then up to ten times faster. It has an effect only before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
