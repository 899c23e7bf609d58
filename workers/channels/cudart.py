"""The calls of CUDA's runtime library that carry memory and events between processes. NOT YET RUN ON A GPU.

torch has loaded the library; it is called directly, because torch hands out memory handles only together with files of
its own in /dev/shm, which a killed process leaves behind.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch

from minedraft.errors import ChannelFailed

_HANDLE_BYTES = 64  # cudaIpcMemHandle_t
_LAZY_PEER_ACCESS = 1  # cudaIpcMemLazyEnablePeerAccess
_COPY_DEFAULT = 4  # cudaMemcpyDefault


class _Handle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_char * _HANDLE_BYTES)]


class Cudart:
    """A `CudaIpc` on one device, which is the present one of every thread that calls it.

    Raises:
        ChannelFailed: the library is not there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        name = f"libcudart.so.{(torch.version.cuda or '0').partition('.')[0]}"
        try:
            self._library: Any = ctypes.CDLL(name)
        except OSError as error:
            raise ChannelFailed(f"{name} cannot be loaded: {error}") from error
        self._library.cudaGetErrorString.restype = ctypes.c_char_p
        with torch.cuda.device(device):
            self._event: Any = torch.cuda.Event(interprocess=True)  # type: ignore[no-untyped-call]
            self._event.record()

    def allocate(self, num_bytes: int) -> int:
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(num_bytes))
        return address.value or 0

    def memory_handle(self, address: int) -> bytes:
        handle = _Handle()
        self._call("cudaIpcGetMemHandle", ctypes.byref(handle), ctypes.c_void_p(address))
        return bytes(handle)

    def event_handle(self) -> bytes:
        return bytes(self._event.ipc_handle())

    def open_memory(self, handle: bytes) -> int:
        if len(handle) != _HANDLE_BYTES:
            raise ChannelFailed(f"a memory handle has {len(handle)} bytes, not {_HANDLE_BYTES}")
        address = ctypes.c_void_p()
        opened = _Handle.from_buffer_copy(handle)
        self._call("cudaIpcOpenMemHandle", ctypes.byref(address), opened, ctypes.c_uint(_LAZY_PEER_ACCESS))
        return address.value or 0

    def close_memory(self, address: int) -> None:
        self._call("cudaIpcCloseMemHandle", ctypes.c_void_p(address))

    def open_event(self, handle: bytes) -> Callable[[], bool]:
        try:
            event: Any = torch.cuda.Event.from_ipc_handle(self._device, handle)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ChannelFailed(f"the other worker's event cannot be opened: {error}") from error
        return lambda: bool(event.query())

    def write(self, address: int, header: bytes, data: torch.Tensor) -> None:
        stream = torch.cuda.current_stream(self._device)
        buffer = ctypes.create_string_buffer(header, len(header))
        self._copy(address, ctypes.addressof(buffer), len(header), stream)
        if data.numel():
            self._copy(address + len(header), data.data_ptr(), data.numel(), stream)
        self._event.record(stream)

    def read_bytes(self, address: int, num_bytes: int) -> bytes:
        buffer = ctypes.create_string_buffer(num_bytes)
        stream = torch.cuda.current_stream(self._device)
        self._copy(ctypes.addressof(buffer), address, num_bytes, stream)
        stream.synchronize()
        return buffer.raw

    def read(self, address: int, num_bytes: int) -> torch.Tensor:
        data = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        stream = torch.cuda.current_stream(self._device)
        self._copy(data.data_ptr(), address, num_bytes, stream)
        stream.synchronize()
        return data

    def _copy(self, to: int, source: int, num_bytes: int, stream: torch.cuda.Stream) -> None:
        # From host memory that is not pinned, CUDA has taken all of it when the call returns.
        self._call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(to),
            ctypes.c_void_p(source),
            ctypes.c_size_t(num_bytes),
            ctypes.c_int(_COPY_DEFAULT),
            ctypes.c_void_p(stream.cuda_stream),
        )

    def _call(self, name: str, *arguments: object) -> None:
        with torch.cuda.device(self._device):
            code = getattr(self._library, name)(*arguments)
        if code:
            self._library.cudaGetLastError()  # so that torch does not meet it later
            raise ChannelFailed(f"{name}: {self._library.cudaGetErrorString(code).decode()}")
