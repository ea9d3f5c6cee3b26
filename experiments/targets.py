"""Chips that programs are compiled for and that need not be here: TPUs and GPUs, described.

A target is a kind and a shape: ``v5e:2x2`` is four TPUs of a slice, ``h100:8`` eight GPUs of a
machine, ``h100:2x8`` those of two.
"""

import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np
from jax.experimental import topologies


class Chip(NamedTuple):
    """What a chip has, by Google Cloud's documentation of TPU versions and NVIDIA's data sheets."""

    gigabytes: float
    """Of memory; of a GPU's the three quarters that JAX takes if it is not told otherwise."""
    flops: float
    """A second, of products in bfloat16."""
    memory: float
    """Bytes a second, to its memory and back."""
    links: float
    """Bytes a second, over all links to other chips."""
    capability: str | None = None
    """Of a GPU, what it can do; None is a TPU."""

    @property
    def platform(self) -> str:
        """As JAX names it."""
        return "tpu" if self.capability is None else "gpu"


CHIPS = {
    "v4": Chip(32, 275e12, 1228e9, 300e9),
    "v5e": Chip(16, 197e12, 819e9, 200e9),
    "v5p": Chip(95, 459e12, 2765e9, 600e9),
    "v6e": Chip(32, 918e12, 1640e9, 448e9),
    "h100": Chip(63.8, 989e12, 3350e9, 900e9, "9.0"),
    "h200": Chip(113, 989e12, 4800e9, 900e9, "9.0"),
}
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
"""Without these the compiler for TPU would look for one, and that for GPU say what it misses."""
PACKAGES = {
    "tpu": ("libtpu",),
    "gpu": ("jax-cuda13-pjrt", "jax-cuda13-plugin", "nvidia-cuda-nvcc", "nvidia-nvvm"),
}
"""Compilers; ``pip install --no-deps`` of them is enough where there is no such chip."""
_HOPPER = """
platform_name: "CUDA"
device_description_str: "{kind}"
runtime_version {{ major: 13 }}
dnn_version_info {{ major: 9 minor: 10 }}
gpu_device_info {{
  cuda_compute_capability {{
    major: {major}
    minor: {minor}
    feature_extension: ACCELERATED_FEATURES
  }}
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  clock_rate_ghz: 1.98
  l2_cache_size: 52428800
  memory_bandwidth: {memory}
  device_memory_size: {bytes}
}}
"""
"""A GPU to XLA (``GpuTargetConfigProto``), by NVIDIA's "CUDA C++ Programming Guide", table of
compute capabilities."""


def checked(target: str) -> str:
    """Returns the target.

    Raises:
      ValueError: if there is no such kind, or no shape.
    """
    kind, _, shape = target.partition(":")
    if kind not in CHIPS or not shape:
        raise ValueError(
            f"--target is {target!r}; expected KIND:SHAPE, KIND one of {', '.join(CHIPS)}, as "
            "in v5e:2x2, v5p:4x4x4 or h100:8"
        )
    if not all(side.isdecimal() and int(side) for side in shape.split("x")):
        raise ValueError(f"--target is {target!r}; expected sides of 1 and more, as in v5e:2x2")
    return target


def chip_of(target: str) -> Chip:
    """Returns what each chip of a target has."""
    return CHIPS[target.partition(":")[0]]


def is_installed(platform: str) -> bool:
    """Returns whether the compiler for a platform is."""
    try:
        return all(version(package) for package in PACKAGES[platform])
    except PackageNotFoundError:
        return False


def devices_of(target: str) -> list[Any]:
    """Returns the chips of a target.

    Raises:
      ValueError: if the compiler is not installed or knows no such target.
    """
    (kind, _, shape), chip = target.partition(":"), chip_of(target)
    if not is_installed(chip.platform):
        packages = " ".join(PACKAGES[chip.platform])
        raise ValueError(
            f"the compiler for {chip.platform.upper()} is not installed: "
            f"pip install --no-deps {packages}"
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        if chip.platform == "tpu":
            topology = topologies.get_topology_desc(target, platform="tpu")
        else:
            topology = topologies.get_topology_desc(
                "", "cuda", target_config=_described(kind, chip), topology=_machines(shape)
            )
    except Exception as error:  # The compiler's own, of several types.
        raise ValueError(f"--target is {target!r}, which the compiler refuses: {error}") from None
    return list(np.array(topology.devices).flatten())


def _described(kind: str, chip: Chip) -> str:
    """Returns a GPU as XLA reads it."""
    assert chip.capability is not None
    major, minor = chip.capability.split(".")
    memory, size = int(chip.memory), int(chip.gigabytes / 0.75 * 1e9)
    return _HOPPER.format(kind=kind, major=major, minor=minor, memory=memory, bytes=size)


def _machines(shape: str) -> str:
    """Returns the slices, machines of a slice and GPUs of a machine."""
    sides = shape.split("x")
    return "x".join(["1"] * (3 - len(sides)) + sides)
