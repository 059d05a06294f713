"""Second-order experiments, each a script: `python -m benchmarks.experiments.NAME [--quick]`."""
