"""Makes `import torchvision` work where PyPI's CUDA build of it meets a CPU build of torch.

That torchvision registers the fake kernels of its compiled operators while its shared library, linked against
CUDA, cannot be loaded: the import dies of "operator torchvision::nms does not exist" and takes transformers and
vLLM with it. Neither of them needs these operators, so it is enough to declare their schemas and import again.
Where torchvision imports cleanly, or is not installed, nothing is changed.

Call `ensure_torchvision` before every first import of transformers or vLLM. It is also the package's
`vllm.platform_plugins` entry point: vLLM runs those before its own imports, in every process that it starts.
Importing this module does not import torch.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache

OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_libraries: list[object] = []


@cache
def ensure_torchvision() -> None:
    """Import torchvision, with its missing operators declared if that is what it lacks; later calls do nothing.

    Returns None, which tells vLLM that this plugin provides no platform.
    Raises RuntimeError, torchvision's own, if it cannot be imported for any other reason.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _declare_operators()
        import torchvision  # noqa: F401


def _declare_operators() -> None:
    import torch

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for operator in OPERATORS:
        library.define(operator + SCHEMA)
    _libraries.append(library)  # the declarations vanish with the object that made them
