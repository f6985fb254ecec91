"""The suites of `tools/benchmark.py`: one file each, with ``Sizes`` and ``run(folder, sizes)``."""
