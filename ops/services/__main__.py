"""`python -m ops.services up | down | status`."""

import sys

from ops.services.command import main

sys.exit(main(sys.argv[1:]))
