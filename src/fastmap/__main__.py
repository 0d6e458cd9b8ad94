"""``python -m fastmap``."""

import sys

from fastmap.cli.main import main

sys.exit(main())
