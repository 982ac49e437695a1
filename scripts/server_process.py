"""What the servers for tests share: a program that serves until its starter is killed, or lets go of it."""
import os
import signal
import stat
import subprocess
import sys
import threading
from collections import deque
from contextlib import contextmanager


@contextmanager
def started(command, mark, **options):
    """Starts a program, and gives the last word of the line in which it prints `mark` once it serves. Kills it in the end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
    try:
        word = next(line for line in server.stdout if mark in line).split()[-1]
        # What it logs later is dropped: a full pipe would stop it.
        threading.Thread(target=deque, args=(server.stdout, 0), daemon=True).start()
        yield word
    finally:
        server.kill()
        server.wait()


def serve():
    """Returns when standard input ends, if that is a pipe; else this process is to be killed."""
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        sys.stdin.read()
    else:
        signal.pause()
