"""`python -m kdmcse_cli`, so that `accelerate launch -m kdmcse_cli` can start a command on many processes."""

import sys

from . import main

sys.exit(main())
