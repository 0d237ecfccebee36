"""The `pyllm` program; `python -m pyllm` is the same.

Python puts the current folder first in the search path of `python -m`; it is removed before anything else is imported.
What Python itself imports before this line, and a folder or file called pyllm, are beyond reach: `python -P -m pyllm`
and `pyllm` have no such folder from the start.
"""

import os
import sys


def main() -> None:
    """Run the command line, with nothing of the current folder in the search paths for modules and programs."""
    try:
        if sys.path and sys.path[0] in ("", os.getcwd()) and not sys.flags.safe_path:
            del sys.path[0]
    except OSError:  # the current folder was deleted
        pass
    from pyllm import env

    env.leave_current_folder()
    from pyllm import cli

    cli.main()


if __name__ == "__main__":
    main()
