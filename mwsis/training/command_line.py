"""How every command starts, tells how far it is, and ends: its arguments, its bars, a mistake said in one sentence.

Nothing but Python is imported: `tools/doctor.py` starts where nothing else is installed. Settings of a run, which need
hydra, are `commands.py`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mwsis.core.errors import ConfigError, MwsisError

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["progress_line", "run_command", "split_arguments"]

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def run_command(main: Callable[[list[str]], None], description: str) -> None:
    """Run a command's ``main`` on the command line's ``key=value`` arguments.

    Args:
        main: takes the arguments; raises `MwsisError` for what the user can put right.
        description: printed for ``--help``.

    Raises:
        SystemExit: 0 after help, 2 after a user error, 130 after an interrupt.
    """
    arguments = sys.argv[1:]
    if any(argument in ("-h", "--help") for argument in arguments):
        sys.stdout.write(description.strip() + "\n")
        raise SystemExit(0)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        with _bars_closed_after():
            main(arguments)
    except MwsisError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(EXIT_USER_ERROR) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(EXIT_INTERRUPTED) from None


def split_arguments(arguments: list[str], own: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Separate a command's own keys from overrides of the run configuration.

    Args:
        arguments: ``key=value`` strings.
        own: the command's own keys with defaults; a default of ``""`` marks a required key.

    Returns:
        The own keys with values, and the remaining arguments in order.

    Raises:
        ConfigError: an argument is no ``key=value``, or a required key is missing.
    """
    values, overrides = dict(own), []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ConfigError(f"argument '{argument}': expected key=value; see --help")
        if key in own:
            values[key] = value
        else:
            overrides.append(argument)
    for key, given in values.items():
        if given == "":
            raise ConfigError(f"'{key}=...' is required; see --help")
    return values, overrides


_bars: dict[str, tqdm] = {}


def progress_line(name: str, done: int, total: int) -> None:
    """Show how far a named piece of work is and how long it will still take; quiet when it was a single item."""
    if name not in _bars:
        if total <= 1 or done >= total:
            return
        from tqdm import tqdm

        _bars[name] = tqdm(total=total, desc=name, leave=False)
    _bars[name].update(done - _bars[name].n)
    if done >= total:
        _bars.pop(name).close()


@contextmanager
def _bars_closed_after() -> Iterator[None]:
    """Wipe the bars of work that was not finished, so that what is said next has a line of its own."""
    try:
        yield
    finally:
        while _bars:
            _bars.popitem()[1].close()
