"""Which device and which number format this machine is fast in; chosen once and said once."""

from __future__ import annotations

import time

import torch

from lightning_dadpo.models.spec import Precision

__all__ = [
    "default_device",
    "has_fast_bfloat16",
    "training_precision",
    "inference_precision",
    "default_tokens_per_batch",
    "matmul_rate",
    "describe",
]


def default_device() -> torch.device:
    """The GPU when there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def has_fast_bfloat16(device: torch.device | None = None) -> bool:
    """True where the hardware multiplies bfloat16 natively; elsewhere it is emulated and 100 times slower."""
    device = device or default_device()
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def training_precision(device: torch.device | None = None) -> Precision:
    """For whatever is trained, and for the reference, which is scored exactly as the policy trains."""
    return "bf16-mixed" if has_fast_bfloat16(device) else "32-true"


def inference_precision(device: torch.device | None = None) -> Precision:
    """For the teacher and for sampling: nothing there needs float32 weights."""
    return "bf16-true" if has_fast_bfloat16(device) else "32-true"


def default_tokens_per_batch(device: torch.device | None = None) -> int:
    """Tokens of one forward pass: enough to keep the device busy, few enough to fit beside a model."""
    return 8192 if (device or default_device()).type == "cuda" else 1024


def matmul_rate(precision: Precision, device: torch.device | None = None) -> float:
    """Measured FLOP/s of a product of SmolLM2-135M's shape: what estimates of time start from."""
    device = device or default_device()
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    left, right = torch.randn(2048, 576, device=device).to(dtype), torch.randn(576, 1536, device=device).to(dtype)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        float((left @ right)[0, 0])  # reading a number waits for the GPU
        seconds.append(time.perf_counter() - start)
    return 2 * 2048 * 576 * 1536 / min(seconds)


def describe(device: torch.device | None = None) -> str:
    """One line for the log: device, number formats, threads and versions."""
    import transformers

    device = device or default_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return (
        f"device {device.type} ({name}), {torch.get_num_threads()} threads; trains in {training_precision(device)}, "
        f"samples and scores the teacher in {inference_precision(device)}; "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
