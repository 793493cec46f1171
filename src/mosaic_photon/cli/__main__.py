"""`python -m mosaic_photon.cli` is `mosaic-photon`."""

import sys

from mosaic_photon.cli import main

sys.exit(main())
