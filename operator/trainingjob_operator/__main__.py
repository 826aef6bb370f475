"""`python -m trainingjob_operator`."""

import sys

from trainingjob_operator.main import main

sys.exit(main())
