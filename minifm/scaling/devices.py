"""Accelerators and what their makers say that they can do at most: dense products of bf16 with
sums in float32 (figures "with sparsity" are twice that), memory, and how fast it is read.

Each figure is that of the maker's data sheet, named in the last column; no device was measured.
"""

from typing import NamedTuple


class Device(NamedTuple):
    """One accelerator.

    peak       FLOP/s of dense bf16 products
    memory     bytes, as the data sheet's GB: 10^9
    bandwidth  bytes/s between that memory and the device
    server     how many share the fast links of one server, within which layers may be divided
    source     where the figures stand
    """

    peak: float
    memory: float
    bandwidth: float
    server: int
    source: str


# The V100 has no bf16: its figure is that of float16, which takes the same memory.
DEVICES = {
    "v100": Device(125e12, 32e9, 0.9e12, 8, "NVIDIA V100 data sheet, SXM2 32 GB, float16"),
    "a100-40gb": Device(312e12, 40e9, 1.555e12, 8, "NVIDIA A100 data sheet, SXM 40 GB"),
    "a100": Device(312e12, 80e9, 2.039e12, 8, "NVIDIA A100 data sheet, SXM 80 GB"),
    "h100": Device(989e12, 80e9, 3.35e12, 8, "NVIDIA H100 data sheet, SXM"),
    "h200": Device(989e12, 141e9, 4.8e12, 8, "NVIDIA H200 data sheet, SXM"),
    "b200": Device(2250e12, 180e9, 8.0e12, 8, "NVIDIA DGX B200 data sheet, an eighth of it"),
    "l4": Device(121e12, 24e9, 0.3e12, 1, "NVIDIA L4 data sheet"),
    "l40s": Device(362e12, 48e9, 0.864e12, 1, "NVIDIA L40S data sheet"),
    "rtx4090": Device(165.2e12, 24e9, 1.008e12, 1, "NVIDIA Ada architecture white paper"),
    "mi250x": Device(383e12, 128e9, 3.277e12, 8, "AMD MI250X data sheet, both dies"),
    "mi300x": Device(1307e12, 192e9, 5.3e12, 8, "AMD MI300X data sheet"),
}
