"""Temporary folders whose names say whose they are, so that those of dead processes can go."""

import os
import platform
import re
import shutil
import uuid
from pathlib import Path

_NAME = re.compile(r"\.(?P<what>.+?)\.((?P<host>[^.]+)\.)?(?P<pid>\d+)\.[0-9a-f]{8}")


def temporary(root: Path, what: str) -> Path:
    """Returns the path of a new folder in ``root``, hidden, of this process; it is not made."""
    return root / f".{what}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"


def remove(root: Path) -> list[str]:
    """Removes the temporary folders of this machine's dead processes; returns their names.

    Args:
      root: folder that they lie in; may be missing, or not be ours to write.
    """
    removed = []
    for path in root.glob(".*") if root.is_dir() else ():
        found = _NAME.fullmatch(path.name)
        # Of an earlier version they do not name the machine.
        if found and found["host"] in (None, _host()) and not _is_alive(int(found["pid"])):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path.name)
    return removed


def _host() -> str:
    return platform.node().replace(".", "-") or "here"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
