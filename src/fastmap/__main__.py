"""``python -m fastmap``."""

import sys

from fastmap.cli import main

sys.exit(main())
