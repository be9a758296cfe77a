"""Let `import torchvision` pass beside a CPU build of torch.

PyPI's torchvision is built for CUDA: its library does not load there, and its Python part then fails on
"operator torchvision::nms does not exist", and transformers with it. The operators need only be declared:
they find boxes in pictures, which no model server here does on a CPU.
"""

import importlib.util
from pathlib import Path

_declared = []  # what a Library declared is gone when it is


def prepare() -> None:
    """Declare torchvision's operators, unless its own library does or it is not installed."""
    spec = importlib.util.find_spec("torchvision")
    if _declared or spec is None or spec.origin is None:
        return
    import torch
    from torch import library as registry

    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except OSError:  # libtorch_cuda.so and the like are not there
            continue
        return
    # torch's registry of operators, not a file that is loaded. torchvision/_meta_registrations.py looks both
    # up in it while it is imported: without them it ends with "operator torchvision::nms does not exist".
    operators = registry.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(operators)
