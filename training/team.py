"""Owns who learns together, and on which terms: processes, devices, repeatable kernels.

Refuses to know what is learnt.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed


@dataclass(frozen=True)
class Team:
    """This process among those that learn together.

    Attributes:
        rank: counts from 0; 0 writes and judges.
        size: how many there are.
        device: this process's own.
    """

    rank: int
    size: int
    device: torch.device


@contextmanager
def processes(device: torch.device | str) -> Iterator[Team]:
    """Join those that torchrun started, if it did."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    own = torch.device(device)
    if size == 1:
        yield Team(0, 1, own)
        return
    if own.type == "cuda":
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
    joined = not distributed.is_initialized()
    if joined:
        distributed.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield Team(distributed.get_rank(), size, own)
    finally:
        if joined:
            distributed.destroy_process_group()


@contextmanager
def settled() -> Iterator[None]:
    """Repeatable kernels while we learn, and what the process had before afterwards."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn: Any = torch.backends.cudnn
    kernels: Any = torch.utils.deterministic
    filled = kernels.fill_uninitialized_memory
    before = cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn.benchmark, cudnn.deterministic = False, True
    torch.use_deterministic_algorithms(True, warn_only=True)
    kernels.fill_uninitialized_memory = False  # costs time, finds bugs only
    # Gradients of boxes that are surely background are so small that processors trip over them.
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before[:2]
        torch.use_deterministic_algorithms(before[2], warn_only=only_warns)
        kernels.fill_uninitialized_memory = filled
        torch.set_flush_denormal(False)
