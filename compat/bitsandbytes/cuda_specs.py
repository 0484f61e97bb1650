"""What torch says of CUDA or ROCm here."""

from __future__ import annotations

import dataclasses

import torch

__all__ = [
    "CUDASpecs",
    "get_compute_capabilities",
    "get_cuda_specs",
    "get_cuda_version_string",
    "get_cuda_version_tuple",
    "get_rocm_gpu_arch",
]


@dataclasses.dataclass(frozen=True)
class CUDASpecs:
    """The newest GPU and the version of the toolkit that torch was built with."""

    highest_compute_capability: tuple[int, int]
    cuda_version_string: str
    cuda_version_tuple: tuple[int, int]

    @property
    def has_imma(self) -> bool:
        """True where tensor cores multiply int8: from Turing on, and on AMD."""
        return bool(torch.version.hip) or self.highest_compute_capability >= (7, 5)


def get_compute_capabilities() -> list[tuple[int, int]]:
    """Of the GPUs that are there, ascending."""
    return sorted(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))


def get_cuda_version_tuple() -> tuple[int, int] | None:
    """Version of CUDA, or ROCm, that torch was built with."""
    version = torch.version.cuda or torch.version.hip
    if version is None:
        return None
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def get_cuda_version_string() -> str | None:
    """The same in digits only, as in `130`."""
    version = get_cuda_version_tuple()
    return None if version is None else "".join(map(str, version))


def get_cuda_specs() -> CUDASpecs | None:
    """None where torch has no CUDA, or no GPU is there."""
    version, text = get_cuda_version_tuple(), get_cuda_version_string()
    if version is None or text is None or not torch.cuda.is_available():
        return None
    return CUDASpecs(get_compute_capabilities()[-1], text, version)


def get_rocm_gpu_arch() -> str:
    """As in `gfx942`; `unknown` where there is no AMD GPU."""
    if not torch.version.hip or not torch.cuda.is_available():
        return "unknown"
    return torch.cuda.get_device_properties(0).gcnArchName.partition(":")[0]
