"""A kvtierd as far as a client sees one, that refuses these requests, by default every hello as another version would:
old_daemon.py [OP...]. Others get $ANSWER (JSON), or an empty answer. It ends with SIGTERM. With $FOREIGN
its name is not kvtierd, as where systemd holds the socket."""
import ctypes
import json
import os
import socket
import struct
import sys

REFUSED = sys.argv[1:] or ["hello"]
if "FOREIGN" not in os.environ:
    ctypes.CDLL(None).prctl(15, b"kvtierd", 0, 0, 0)  # PR_SET_NAME: what /proc/PID/comm says
path = os.environ["SOCKET"]
os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
while True:
    connection = listener.accept()[0]
    while len(head := connection.recv(16)) == 16:
        magic, json_bytes, _, _ = struct.unpack("<IIII", head)
        request = json.loads(connection.recv(json_bytes))
        answer = {**json.loads(os.environ.get("ANSWER", "{}")), "id": request["id"], "ok": True}
        if request["op"] in REFUSED:
            answer = {"id": request["id"], "ok": False, "code": 41,
                      "error": f"client speaks protocol {request.get('version')}, this kvtierd 99: "
                               "install the same version of both"}
        body = json.dumps(answer).encode()
        connection.sendall(struct.pack("<IIII", magic, len(body), 0, 0) + body)
        if not answer["ok"]:
            break
    connection.close()
