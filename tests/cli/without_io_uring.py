"""Runs a command as under a container's seccomp profile: io_uring_setup is refused with EPERM."""
import ctypes
import os
import struct
import sys

NR_IO_URING_SETUP, EPERM = 425, 1
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
LOAD_NR, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO = 0x7FFF0000, 0x00050000

program = b"".join(struct.pack("<HBBI", *step) for step in [
    (LOAD_NR, 0, 0, 0), (JUMP_IF_EQUAL, 0, 1, NR_IO_URING_SETUP), (RETURN, 0, 0, SECCOMP_RET_ERRNO | EPERM),
    (RETURN, 0, 0, SECCOMP_RET_ALLOW)])
steps = ctypes.create_string_buffer(program)
header = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(steps)))
prctl = ctypes.CDLL(None, use_errno=True).prctl
if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 or prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_void_p(ctypes.addressof(header))) != 0:
    sys.exit("no seccomp here")
os.execvp(sys.argv[1], sys.argv[1:])
