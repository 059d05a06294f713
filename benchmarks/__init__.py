"""Comparisons of jaxsoftjac with its peers: `python -m benchmarks`."""
