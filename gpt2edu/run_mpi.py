"""One rank of `gpt2edu.show_ranks.run_mpi`: calls a function and leaves what it returns in a file, as JSON."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from gpt2edu.errors import run_main
from gpt2edu.launcher import launched_world


def main(_argv: object = None) -> int:
    """Call the function that the command line names: FOLDER MODULE NAME ARGUMENT..."""
    folder, module, name, *arguments = sys.argv[1:]
    value = getattr(importlib.import_module(module), name)(*arguments)
    Path(folder, str(launched_world()[0])).write_text(json.dumps(value))
    return 0


if __name__ == "__main__":
    run_main(main)
