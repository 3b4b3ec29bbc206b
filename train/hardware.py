"""What a GPU can do: its dense bfloat16 peak, its memory. Knows no model beyond a count of operations."""

import os

import torch

DENSE_BF16_FLOPS = {
    "H200": 989.4e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989.4e12, "GH200": 989.4e12, "H800": 989.4e12,
    "B200": 2250e12, "A100": 312e12, "A800": 312e12, "A10G": 70e12, "A10": 125e12, "A40": 149.7e12, "L40S": 362e12,
    "L4": 121e12, "RTX 4090": 165.2e12, "RTX 3090": 71e12, "RTX 6000 Ada": 364.2e12, "RTX A6000": 154.8e12,
}  # fmt: skip
"""Operations per second by a part of the name, longer names first: NVIDIA's data sheets, without sparsity, float32
accumulation. A GPU that is not here has no MFU, rather than a guess."""


def peak_flops(device_name: str) -> float | None:
    """The dense bfloat16 peak of a GPU by the name that the driver gives it, or None if it is not known.

    >>> peak_flops("NVIDIA H200")
    989400000000000.0
    """
    known = sorted(DENSE_BF16_FLOPS, key=len, reverse=True)
    if "Laptop" in device_name:  # another chip under the same name
        return None
    # A whole word, so that an A100 is no A10.
    words = f" {device_name.replace('-', ' ')} "
    return next((DENSE_BF16_FLOPS[name] for name in known if f" {name} " in words), None)


def device_name(device: torch.device) -> str:
    """The GPU's name, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def memory_bytes(device: torch.device) -> int:
    """The memory of a GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_used(device: torch.device) -> dict[str, int]:
    """The most memory that tensors took so far, as a part of a step's metrics; nothing on a CPU."""
    return {"memory_bytes": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}
