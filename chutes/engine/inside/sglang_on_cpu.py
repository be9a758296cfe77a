"""Let `import sglang` pass on a machine without a GPU: import this first.

SGLang 0.5.23 on a CPU with its native attention runs on torch alone, but the modules that it imports on the
way name packages that are for GPUs, or for people:

    sgl_kernel   its compiled kernels; the PyPI builds are for CUDA
    triton       1 GB; its kernels are decorated while modules are imported and never called
    IPython      to show things in a notebook

Each of them is played by a package with every name in it: a decorator of that kind hands back what it
decorates, a class can be inherited from, and calling anything else raises or does nothing. Child processes
of SGLang run the server's script again up to its `__main__`, so it holds there too.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import types

import torchvision_on_cpu

PLAYED = ("sgl_kernel", "triton", "IPython")


class _Value:
    """Anything but a class in one of them. A call without arguments raises: so SGLang learns which GPU
    there is, and takes the CPU if it gets no answer."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str):
        if name.startswith("__"):  # looked up by inspect, copy and the like to learn what this is
            raise AttributeError(name)
        return _Value(f"{self._name}.{name}")

    def __call__(self, *args, **options):
        if len(args) == 1 and callable(args[0]) and not options:
            return args[0]  # @triton.jit
        if self._name.startswith("triton.") and (args or options):
            return lambda decorated: decorated  # @triton.jit(...)
        # A refusal, not a part that is missing here. SGLang catches it where it asks triton for the GPU
        # (kernels/ops/attention/fla/utils.py); a kernel that is called after all ends with this sentence.
        raise NotImplementedError(f"{self._name} needs a GPU: this environment of SGLang is for CPUs.")


class _Kind:
    """A class in one of them, made with any arguments: `triton.Config({...}, num_warps=4)`."""

    def __init__(self, *args, **options) -> None:
        pass


class _Module(types.ModuleType):
    __version__ = "3.0.0"  # torch and SGLang compare triton's

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        full = f"{self.__name__}.{name}"
        # By the usual spelling: torch asks isinstance(…, triton's JITFunction), which takes only a class.
        found = type(name, (_Kind,), {}) if name[0].isupper() else _Value(full)
        setattr(self, name, found)
        return found


class _Player(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] not in PLAYED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module) -> None:
        pass


os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
sys.meta_path.insert(0, _Player())
torchvision_on_cpu.prepare()
