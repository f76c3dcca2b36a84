"""A Sphinx extension that stops a build of anything but the copy that `build.py` stages."""

import sys
from pathlib import Path


def setup(app):
    if (Path(app.srcdir) / "Makefile").exists():
        # no error of Sphinx, which Jupyter Book would follow by a traceback
        sys.exit("The pages here are not executed. `make book` executes them and builds the book.")
    return {"parallel_read_safe": True}
