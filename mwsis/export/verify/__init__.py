"""The checks that a user runs in another framework's environment, as one stand-alone file each.

`files.py` has what all of them do; a module per framework says how its class is made, loaded and run. They import
nothing of ours and run on Python 3.7, because such environments are old.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["verify_script"]

HERE = Path(__file__).parent
SHARED_IMPORT = re.compile(r"^from mwsis\.export\.verify\.files import .*\n", re.MULTILINE)
FUTURE = "from __future__ import annotations\n"


def verify_script(framework: str) -> str:
    """Return the text of ``verify_<framework>.py``: the framework's module with `files.py` in place of its import.

    Args:
        framework: a module beside this one.
    """
    _, _, shared = (HERE / "files.py").read_text(encoding="utf-8").partition(FUTURE)
    own = (HERE / f"{framework}.py").read_text(encoding="utf-8")
    before, after = SHARED_IMPORT.split(own, maxsplit=1)
    return before + shared.strip("\n") + "\n" + after
