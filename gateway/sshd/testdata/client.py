"""A client by another hand: client.py SOCKET ACTION ARGUMENT..."""
import hashlib, os, socket, sys

import paramiko

path, action, *args = sys.argv[1:]
sock = socket.socket(socket.AF_UNIX)
sock.connect(path)
t = paramiko.Transport(sock)
t.start_client(timeout=60)

if action == "auth":
    user, method = args
    if method == "password":
        left = t.auth_password(user, "any", fallback=False)
    else:
        left = t.auth_publickey(user, paramiko.ECDSAKey.generate())
    assert t.is_authenticated(), left
elif action == "session":
    t.auth_none("x")
    ch = t.open_session(timeout=60)
    ch.get_pty("vt100", 90, 30)
    ch.resize_pty(100, 40)
    ch.exec_command("sh -c 'stty size; echo $TERM; exit 4'")
    out = b""
    while True:
        b = ch.recv(65536)
        if not b:
            break
        out += b
    assert out == b"40 100\r\nvt100\r\n", out
    assert ch.recv_exit_status() == 4
    # A plain command, with its input ended.
    ch = t.open_session(timeout=60)
    ch.exec_command("sh -c 'md5sum; echo e >&2'")
    data = os.urandom(1 << 20)
    ch.sendall(data)
    ch.shutdown_write()
    out = ch.makefile("rb").read()
    assert out.split()[0].decode() == hashlib.md5(data).hexdigest(), out
    assert ch.makefile_stderr("rb").read() == b"e\n"
    assert ch.recv_exit_status() == 0
    # A port, with half-close.
    ch = t.open_channel("direct-tcpip", ("localhost", 7000), ("127.0.0.1", 1), timeout=60)
    ch.sendall(b"over the wire")
    ch.shutdown_write()
    assert ch.makefile("rb").read() == b"over the wire"
else:
    sys.exit("unknown action " + action)
t.close()
