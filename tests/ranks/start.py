"""What mpirun starts in place of Python: hands itself to the server and waits for the fork's end.

``python -IS start.py SOCKET COMMAND WORDS...``; COMMAND is what starts this, for the fork's
``sys.executable``. Without torch, as every line here is run before every rank.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from contextlib import suppress
from types import FrameType

PASSED = ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "CONT")


def like_the_server(server: socket.socket) -> bool:
    """Whether a fork there has the same network, host name and files as this process."""
    credentials = server.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    other = struct.unpack("3i", credentials)[0]
    try:
        return all(
            os.readlink(f"/proc/self/ns/{kind}") == os.readlink(f"/proc/{other}/ns/{kind}")
            for kind in ("net", "uts", "mnt", "pid", "user")
        )
    except OSError:
        return False


def main() -> None:
    """End as the fork ends; be a plain Python where that would be another thing."""
    address, command, *words = sys.argv[1:]
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    known = words and (words[0] in ("-m", "-c") or words[0][0] != "-")
    # Pools of threads read their variable when they are loaded.
    if not known or os.environ.get("OMP_NUM_THREADS") != "1" or not like_the_server(server):
        server.close()
        os.execv(sys.executable, [sys.executable, *words])
    umask = os.umask(0)
    os.umask(umask)
    request = {
        "command": command,
        "words": words,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "umask": umask,
        "cores": sorted(os.sched_getaffinity(0)),
    }
    text = json.dumps(request).encode()

    def pass_on(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):  # the fork has ended
            server.send(bytes([number]))

    socket.send_fds(server, [struct.pack("I", len(text))], [0, 1, 2])
    server.sendall(text)
    for name in PASSED:
        signal.signal(getattr(signal, f"SIG{name}"), pass_on)
    try:
        status = server.recv(4)
    except ConnectionError:
        status = b""
    if len(status) < 4:
        os._exit(1)  # the server has ended, and said why if that was its fault
    (code,) = struct.unpack("i", status)
    if code < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


main()
