"""Translation of CUDA's errors into pyllm's: what is wrong, and what would work."""

from __future__ import annotations

import re

from pyllm.backends.cuda.driver import INSTALL_DRIVER, is_installed, version_text, wrong_cupy
from pyllm.errors import BackendError, OutOfMemoryError

OUT_OF_MEMORY, NOT_READY = 2, 600
_INSUFFICIENT_DRIVER = 35

_LOST = {
    201: "its context was destroyed",
    214: "its memory has an error that cannot be corrected",
    219: "its context cannot be used",
    220: "its link to another card failed",
    226: "an error of the hardware, or of another card's memory, was contained",
    700: "a kernel used an address outside its memory",
    702: "a kernel took longer than the system allows",
    709: "its context was destroyed",
    710: "a kernel's assertion failed",
    714: "a kernel overflowed its stack",
    715: "a kernel met an illegal instruction",
    716: "a kernel used an address that is not aligned",
    717: "a kernel used an address of the wrong kind",
    718: "a kernel jumped to an invalid address",
    719: "a kernel failed, or the card fell off its bus",
    999: "the driver reports an unknown error",
}
"""After these codes a process cannot use the card any more; runtime and driver use the same numbers."""

_OTHER = {
    46: "it is in use by another process, exclusively, or not available",
    100: "NVIDIA's driver sees no card; check nvidia-smi and CUDA_VISIBLE_DEVICES",
    101: "there is no card of this number",
    200: "a compiled kernel is damaged; delete the folder of compiled kernels (PYLLM_KERNEL_CACHE)",
    209: "the kernels were compiled for another card; delete the folder of compiled kernels (PYLLM_KERNEL_CACHE)",
    304: "the operating system refused what the driver asked for",
    802: "the card is not ready yet (its fabric manager does not run)",
    803: "NVIDIA's kernel module and its library are of different versions; restart the machine after a driver update",
    804: "CUDA's forward compatibility package does not support this card; update the driver itself",
}


def is_lost(code: int) -> bool:
    """Whether a card that reports this code is lost to this process."""
    return code in _LOST


def code_of(error: BaseException) -> int:
    """CUDA's error code of a cupy exception; 0 where it has none."""
    status = getattr(error, "status", 0)
    return int(status) if isinstance(status, int) else 0


def explain(code: int, words: str, device: str, versions: tuple[int, int] = (0, 0)) -> BackendError:
    """The error for a CUDA error code; CUDA's own `words` are included where they say more.

    `versions`: the CUDA versions of the driver (0: no driver) and of cupy.
    """
    driver, runtime = versions
    if code == OUT_OF_MEMORY:
        return OutOfMemoryError(f"{device} is out of memory; take fewer layers (-ngl), or a shorter context")
    if code == _INSUFFICIENT_DRIVER and driver == 0:
        return BackendError(f"there is no NVIDIA driver here; {INSTALL_DRIVER}")
    if code == _INSUFFICIENT_DRIVER and runtime // 1000 > driver // 1000 >= 12:
        return BackendError(wrong_cupy(f"cupy-cuda{runtime // 1000}x", driver))
    if code == _INSUFFICIENT_DRIVER:
        return BackendError(
            f"the driver supports CUDA {version_text(driver)}, which is too old for cupy "
            f"(CUDA {version_text(runtime)}); update NVIDIA's driver"
        )
    if code in _LOST:
        return BackendError(
            f"{device} is lost: {_LOST[code]} (CUDA error {code}); "
            "other devices go on; start pyllm anew to use this one again"
        )
    if code in _OTHER:
        return BackendError(f"{device}: {_OTHER[code]}")
    return BackendError(f"{device} fails: {_short(words)}")


def missing_library(error: BaseException) -> BackendError | None:
    """The error where cupy did not find one of CUDA's libraries; None for any other exception."""
    found = re.search(r"(libcuda|nvcuda|libnvrtc|nvrtc|libcudart|cudart)\S*", str(error))
    if not found or not isinstance(error, (RuntimeError, ImportError, OSError)) or code_of(error):
        return None
    name = found.group(0).rstrip(":,;.'\"")
    if "nvrtc" in name:
        # cupy 14 looks for any version and names several
        major = next((m for m in ("12", "13") if is_installed(f"cupy-cuda{m}x")), "13" if "so.13" in name else "12")
        return BackendError(
            f"cupy does not find NVRTC, CUDA's compiler ({name}), which makes the kernels; "
            f"pip install 'cupy-cuda{major}x[ctk]', or nvidia-cuda-nvrtc{'-cu12' if major == '12' else ''}"
        )
    if "cudart" in name:
        return BackendError(f"cupy does not find CUDA's runtime ({name}); pip install 'cupy-cuda12x[ctk]'")
    return BackendError(f"there is no NVIDIA driver here: {name} is not found; {INSTALL_DRIVER}")


def _short(words: str) -> str:
    return words.strip().splitlines()[0].rstrip(".") if words.strip() else "no reason was given"
