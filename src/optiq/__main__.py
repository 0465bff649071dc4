"""`python -m optiq`: the same as the `optiq` command."""

from __future__ import annotations

import sys

from optiq.cli.main import main

sys.exit(main())
