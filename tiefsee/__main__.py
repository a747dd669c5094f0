"""`python -m tiefsee`: the command line without an installed script."""

import sys

from tiefsee.cli import main

sys.exit(main())
