"""The command line: `python -m jaxsoftjac inspect 2.0 1.0 0.5`, and `explain` and `accuracy`.

>>> main(["inspect"])
2
"""

from jaxsoftjac.cli._main import main

__all__ = [
    "main",
]
