"""`python -m lightning_dadpo` is `dadpo`."""

import sys

from lightning_dadpo.cli.main import main

sys.exit(main())
