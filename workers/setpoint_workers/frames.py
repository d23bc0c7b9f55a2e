"""Frames between a worker and its runner child: four bytes of length, big-endian, then one msgpack list."""

from __future__ import annotations

import socket
from typing import Any, Final, cast

import msgpack

from setpoint.errors import SetpointError

FRAME_BYTES: Final = 64 * 1024 * 1024
"""The largest frame either side sends or accepts."""

Frame = list[Any]


class BadFrame(SetpointError):
    """The other side sent what is no frame; nothing after it can be understood."""


def pack_frame(frame: Frame) -> bytes:
    """The bytes of `frame` on the wire."""
    body = cast("bytes", msgpack.packb(frame))
    if len(body) > FRAME_BYTES:
        raise BadFrame(f"a frame of {len(body)} bytes is over the limit of {FRAME_BYTES}")
    return len(body).to_bytes(4, "big") + body


def send(sock: socket.socket, frame: Frame) -> None:
    """Send `frame` whole, waiting as long as it takes."""
    sock.sendall(pack_frame(frame))


class FrameReader:
    """Puts frames together from whatever pieces arrive."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next bytes and return the frames that they complete, in order."""
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        at = 0
        while len(buffer) - at >= 4:
            size = int.from_bytes(buffer[at : at + 4], "big")
            if size > FRAME_BYTES:
                raise BadFrame(f"a frame of {size} bytes is announced; the limit is {FRAME_BYTES}")
            end = at + 4 + size
            if len(buffer) < end:
                break
            frames.append(_unpack(bytes(buffer[at + 4 : end])))
            at = end
        if at:
            del buffer[:at]
        return frames


def _unpack(body: bytes) -> Frame:
    try:
        frame = cast("object", msgpack.unpackb(body, strict_map_key=False))
    except (ValueError, msgpack.UnpackException) as error:
        raise BadFrame(f"a frame is not msgpack: {error}") from error
    if not isinstance(frame, list) or not frame:
        raise BadFrame("a frame is a list that begins with its name")
    return frame  # pyright: ignore[reportUnknownVariableType]
