"""`python -m agent` is `vestibule-agent`."""

import sys

from agent.command import main

sys.exit(main())
