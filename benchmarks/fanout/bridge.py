"""Brings notifications to nchan: LISTEN, and one pipelined HTTP request per change. Started by run.py."""

from __future__ import annotations

import json
import os
import socket
import threading

import psycopg


def swallow(link: socket.socket) -> None:
    """Read the answers, lest they fill the link."""
    while link.recv(1 << 16):
        pass


def main() -> None:
    """Publish until killed."""
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("listen changes")
        link = socket.create_connection(("127.0.0.1", int(os.environ["PORT"])))
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=swallow, args=[link], daemon=True).start()
        print("listening", flush=True)
        for notify in connection.notifies():
            change = json.loads(notify.payload)
            text = json.dumps(change["message"]).encode()
            head = f"POST /pub/{change['board']} HTTP/1.1\r\nHost: nchan\r\nContent-Length: {len(text)}\r\n\r\n"
            link.sendall(head.encode() + text)


main()
