"""Starts kvtierd as systemd does with kvtierd.socket: the listening socket is descriptor 3."""
import os
import socket

path = os.environ["SOCKET"]
os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
os.chmod(path, 0o600)
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="kvtierd.socket")
os.execvp("kvtierd", ["kvtierd"])
