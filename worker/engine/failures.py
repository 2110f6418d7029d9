"""What an exception out of the model means for the engine."""

from __future__ import annotations

from enum import Enum, auto

import torch

_OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator", "_ALLOC_FAILED", "can't allocate memory")
_DEVICE_ERROR = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "NCCL", "device-side assert", "HIP error")


class Failure(Enum):
    #: It did not fit: fewer rows may.
    MEMORY = auto()
    #: The device is in an unknown state: nothing that runs on it can be trusted from here on.
    DEVICE = auto()
    #: Something in one of the rows.
    ROW = auto()


def classify(error: BaseException) -> Failure:
    """torch has few exception types, so that the message has to tell in many cases."""
    text = str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return Failure.MEMORY
    if isinstance(error, RuntimeError) and any(sign in text for sign in _OUT_OF_MEMORY):
        return Failure.MEMORY
    # AcceleratorError came with torch 2.8.
    if isinstance(error, getattr(torch, "AcceleratorError", ())):
        return Failure.DEVICE
    if isinstance(error, RuntimeError) and any(sign in text for sign in _DEVICE_ERROR):
        return Failure.DEVICE
    return Failure.ROW
