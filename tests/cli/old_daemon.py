"""A kvtierd of another version, as far as a client sees one: it refuses every hello and ends with SIGTERM."""
import ctypes
import json
import os
import socket
import struct

ctypes.CDLL(None).prctl(15, b"kvtierd", 0, 0, 0)  # PR_SET_NAME: what /proc/PID/comm says
path = os.environ["SOCKET"]
os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
while True:
    connection = listener.accept()[0]
    head = connection.recv(16)
    if len(head) == 16:
        magic, json_bytes, _, _ = struct.unpack("<IIII", head)
        request = json.loads(connection.recv(json_bytes))
        body = json.dumps({"id": request["id"], "ok": False, "code": 41,
                           "error": f"client speaks protocol {request['version']}, this kvtierd 99: "
                                    "install the same version of both"}).encode()
        connection.sendall(struct.pack("<IIII", magic, len(body), 0, 0) + body)
    connection.close()
