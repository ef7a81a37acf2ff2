"""A client that writes frames encoded beforehand, for what `leveret perf` does not do."""

import socket
import struct
import urllib.parse

from .brokers import Failed


def short(text):
    return bytes([len(text)]) + text.encode()


def table(arguments):
    out = b""
    for name, value in arguments.items():
        if isinstance(value, int):
            out += short(name) + b"l" + struct.pack(">q", value)
        else:
            out += short(name) + b"S" + struct.pack(">I", len(value)) + value.encode()
    return struct.pack(">I", len(out)) + out


def frame(kind, channel, payload):
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def method(channel, class_id, method_id, payload=b""):
    return frame(1, channel, struct.pack(">HH", class_id, method_id) + payload)


def declare(name, arguments=None, flags=0):
    """`flags`: 1 for passive, 2 for durable, 16 for no-wait."""
    payload = b"\0\0" + short(name) + bytes([flags]) + table(arguments or {})
    return method(1, 50, 10, payload)


def publish(key, expiration_ms=None, mandatory=False):
    """A message of 16 bytes through the default exchange."""
    flags, properties = 0, b""
    if expiration_ms is not None:
        flags, properties = 0x0100, short(str(expiration_ms))
    header = struct.pack(">HHQH", 60, 0, 16, flags) + properties
    start = method(1, 60, 40, b"\0\0" + short("") + short(key) + bytes([mandatory]))
    return start + frame(2, 1, header) + frame(3, 1, b"." * 16)


class Client:
    """One connection with one channel."""

    def __init__(self, uri):
        parts = urllib.parse.urlsplit(uri)
        if parts.scheme != "amqp":
            raise Failed("this client speaks without TLS only")
        self.socket = socket.create_connection((parts.hostname, parts.port or 5672), 60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.input = self.socket.makefile("rb", 1 << 20)
        self.open(
            urllib.parse.unquote(parts.username or "guest"),
            urllib.parse.unquote(parts.password or "guest"),
            urllib.parse.unquote(parts.path[1:] or "/"),
        )

    def open(self, user, password, vhost):
        self.send(b"AMQP\0\0\x09\x01")
        self.await_method(10, 10)
        response = f"\0{user}\0{password}".encode()
        login = table({}) + short("PLAIN") + struct.pack(">I", len(response)) + response
        self.send(method(0, 10, 11, login + short("en_US")))
        tune = self.await_method(10, 30)
        self.send(method(0, 10, 31, tune[:6] + b"\0\0") + method(0, 10, 40, short(vhost) + b"\0\0"))
        self.await_method(10, 41)
        self.send(method(1, 20, 10, short("")))
        self.await_method(20, 11)

    def send(self, data):
        self.socket.sendall(data)

    def read(self):
        """The next frame: its kind and payload."""
        head = self.input.read(7)
        if len(head) < 7:
            raise Failed("the broker closed a connection")
        kind, _, size = struct.unpack(">BHI", head)
        return kind, self.input.read(size + 1)[:-1]

    def await_method(self, class_id, method_id):
        while True:
            kind, payload = self.read()
            ids = struct.unpack(">HH", payload[:4]) if kind == 1 else None
            if ids == (class_id, method_id):
                return payload[4:]
            if ids in ((10, 50), (20, 40)):
                raise Failed(f"the broker closed: {payload[6:]!r}")

    def declare(self, name, arguments=None):
        self.send(declare(name, arguments))
        self.await_method(50, 11)

    def delete(self, name):
        self.send(method(1, 50, 40, b"\0\0" + short(name) + b"\0"))
        self.await_method(50, 41)

    def waiting(self, name):
        """How many messages wait in a queue, once all that was sent before is done."""
        self.send(declare(name, flags=1))
        answer = self.await_method(50, 11)
        return struct.unpack(">I", answer[1 + answer[0]:][:4])[0]

    def close(self):
        self.input.close()
        self.socket.close()
