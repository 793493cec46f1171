"""A release's own tests are collected where it is installed."""

from mosaic_photon.titan.releases import installed

TESTS = {"v02": ["test_precision.py"], "v03": ["test_v03.py", "test_crossing.py"]}
collect_ignore = [name for folder, names in TESTS.items() if folder != installed().folder for name in names]
