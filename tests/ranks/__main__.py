"""``python -m tests.ranks FOLDER``: as long as this runs, FOLDER/python starts in an instant."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from tests.ranks import quick_python

if __name__ == "__main__":
    with quick_python() as command:
        Path(sys.argv[1], "python").symlink_to(command)
        signal.pause()
