"""What mpirun starts in place of Python: hands itself to the server and waits for the fork's end.

``python -IS start.py SOCKET COMMAND WORDS...``; COMMAND is what starts this, for the fork's
``sys.executable``. Every line here is run before every rank: no torch, and in place of ``json``,
``socket``, ``signal`` and ``os``, which take twice as long as all the rest, what they are made of.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import marshal
import posix
import sys

# HUP, INT, QUIT, USR1, USR2, TERM, CONT, as they are numbered on Linux
PASSED = (1, 2, 3, 10, 12, 15, 18)
KILL, STOP = 9, 19


def like_the_server(server: _socket.socket) -> bool:
    """Whether a fork there has the same network, host name and files as this process."""
    credentials = server.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    other = int.from_bytes(credentials[:4], sys.byteorder)
    try:
        return all(
            posix.readlink(f"/proc/self/ns/{kind}") == posix.readlink(f"/proc/{other}/ns/{kind}")
            for kind in ("net", "uts", "mnt", "pid", "user")
        )
    except OSError:
        return False


def main() -> None:
    """End as the fork ends; be a plain Python where that would be another thing."""
    address, command, *words = sys.argv[1:]
    server = _socket.socket(_socket.AF_UNIX)
    server.connect(address)
    known = words and (words[0] in ("-m", "-c") or words[0][0] != "-")
    # Pools of threads read their variable when they are loaded.
    threads = posix.environ.get(b"OMP_NUM_THREADS")
    if not known or threads != b"1" or not like_the_server(server):
        server.close()
        posix.execv(sys.executable, [sys.executable, *words])
    umask = posix.umask(0)
    posix.umask(umask)
    request = {
        "command": command,
        "words": words,
        "environment": posix.environ,
        "folder": posix.getcwd(),
        "umask": umask,
        "cores": list(posix.sched_getaffinity(0)),
    }
    text = marshal.dumps(request)

    def pass_on(number: int, frame: object) -> None:
        try:
            server.send(bytes([number]))
        except OSError:
            return  # the fork has ended

    files = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, files)]
    server.sendmsg([len(text).to_bytes(4, sys.byteorder)], rights)
    server.sendall(text)
    for number in PASSED:
        _signal.signal(number, pass_on)
    try:
        status = server.recv(4)
    except ConnectionError:
        status = b""
    if len(status) < 4:
        posix._exit(1)  # the server has ended, and said why if that was its fault
    code = int.from_bytes(status, sys.byteorder, signed=True)
    if code < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code not in (KILL, STOP):
            _signal.signal(-code, _signal.SIG_DFL)
        posix.kill(posix.getpid(), -code)
    posix._exit(code)


main()
