"""A daemon without capabilities, so that the modes of files bind it also if root runs it.

python tests/faults/unprivileged.py --config FILE
"""

from __future__ import annotations

import ctypes
import struct
import sys

from dapd.cli import main

_VERSION_3 = 0x20080522


def drop_capabilities() -> None:
    """For the rest of this process: capset(2)."""
    header = struct.pack("=Ii", _VERSION_3, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


if __name__ == "__main__":
    drop_capabilities()
    main(sys.argv[1:])
