"""The way in: train a TorchTitan model on Mosaic streams. `--help` shows the options."""

import sys

from mosaic_photon.train_with_mosaic import main

if __name__ == "__main__":
    sys.exit(main())
