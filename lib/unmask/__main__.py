"""`python -m unmask` is the console script `unmask`."""

import sys

from .cli import main

sys.exit(main())
