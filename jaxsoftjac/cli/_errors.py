"""Errors in what the user gave, one line each.

>>> with refusing("x.npy", "a .npy file"):
...     raise EOFError("no data left")
Traceback (most recent call last):
jaxsoftjac.cli._errors.InputError: x.npy: truncated, or not a .npy file (no data left)
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType


class InputError(ValueError):
    """Input that the command line cannot use; its text is one line for the user."""


@contextmanager
def refusing(name: str, kind: str) -> Iterator[None]:
    """Makes an `InputError` of whatever a reader raises, and silences what it warns of.

    A malformed header is met by tokenize, ast or zlib, an archive by struct, lzma or Arrow: their
    exceptions have no common base below `Exception`.

    Args:
        name: Of the file that is read.
        kind: What it should be, with its article.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno:  # the system's, not a reader's
                raise cannot_read(name, error) from None
            reason = shortened(str(error) or type(error).__name__, 120)
            raise InputError(f"{name}: truncated, or not {kind} ({reason})") from None


def cannot_read(name: str, error: OSError) -> InputError:
    """The error of a file that the system does not give."""
    return InputError(f"{name}: cannot be read: {error.strerror or error}")


def shortened(text: str, most: int = 40) -> str:
    r"""`text` on one line of at most so many characters.

    >>> shortened("a" * 10**6, 12), shortened("two\nlines")
    ('aaaaaaaaaaa…', 'two lines')
    """
    line = " ".join(text[: 4 * most].split())
    return line if len(line) <= most and len(text) <= 4 * most else line[: most - 1] + "…"


def listed(names: Iterable[str], most: int = 8) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = [f"{len(names) - most} more"] * (len(names) > most)
    return ", ".join([*map(shortened, names[:most]), *more]) or "no arrays"


def chosen(path: str, names: list[str], key: str | None) -> str:
    """The array that `key` names, or the only one.

    Raises:
        InputError: if there is no such array, or no key and not exactly one array.
    """
    if key is None and len(names) != 1:
        raise InputError(f"{path}: choose an array with --key: the file holds {listed(names)}")
    if key is not None and key not in names:
        held = listed(names)
        raise InputError(f"{path}: no array is named {shortened(key)!r}: the file holds {held}")
    return names[0] if key is None else key


def optional(module: str, path: str) -> ModuleType:
    """A library of the extra `files`.

    Raises:
        InputError: if it is not installed.
    """
    try:
        return import_module(module)
    except ImportError:
        library = module.partition(".")[0]
        raise InputError(
            f'{path}: needs {library}, of the extra "files": pip install "jaxsoftjac[files]"'
        ) from None
