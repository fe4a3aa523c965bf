"""``python -m graftwork.adapters.base``: prepares a base in a process of its own."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from graftwork.adapters.base.preparing import prepare
from graftwork.adapters.base.progress import progress_bar
from graftwork.adapters.errors import GraftworkError


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare a base, progress on stderr, its info as one line of JSON on stdout.

    The server runs this as a process of its own, so that the memory torch takes goes when it ends.
    """
    parser = argparse.ArgumentParser(prog="python -m graftwork.adapters.base", description=main.__doc__)
    parser.add_argument("--base", help="hub id or folder; the embedded base if not given")
    parser.add_argument("--home", type=Path, required=True, help="where prepared bases are kept")
    given = parser.parse_args(arguments)
    os.environ.setdefault("TQDM_DISABLE", "1")  # the GGUF reader's progress bar would overwrite ours
    try:
        with progress_bar() as progress:
            info = prepare(given.base, given.home, progress)
    except GraftworkError as error:
        print(error.message, file=sys.stderr)
        return 1
    print(info.to_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
