"""A CUDA device that is not there: tensors that say they are on cuda:0, whose values lie in memory of the CPU and are computed there.

What torch refuses on a GPU is refused: host and device tensors in one operation. What makes the host wait for a GPU is written
down: values that are read, copies that nobody pinned or that block, indices that come from the host. Kernels, streams, their
order and speed are not shown. Needs a build of torch for the CPU and a C++ compiler.

    build(folder)                   the library, once; then, in a process that has not imported torch yet:
    load(library)                   torch believes in a device from here on
    with pretended() as device:     runs in this block may be on cuda:0
        device.starting = False     from here on no network is moved, and what is not used is forgotten
        device.watched = True       from here on waits are written down
        device.waits                {what, and the line of ours or of torch's optimisers: how often}
"""

import contextlib
import ctypes
import subprocess
import sysconfig
import traceback
import weakref
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

HERE = Path(__file__).parent


def build(folder: Path) -> Path:
    """The library for the torch that is installed; it is found without importing torch."""
    torch = Path(find_spec("torch").origin).parent
    library = folder / "pretended.so"
    command = [
        "g++", "-O1", "-std=c++20", "-shared", "-fPIC", str(HERE / "pretended.cpp"), "-o", str(library),
        f"-I{torch / 'include'}", f"-I{sysconfig.get_paths()['include']}", f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}",
        "-Wl,--no-as-needed", "-lc10", "-ltorch_cpu",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def load(library: Path) -> None:
    ctypes.CDLL(str(library))


@contextlib.contextmanager
def pretended():
    """Within, there is a device cuda:0 for this thread, on which batches are made too; yields the Device."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_flatten, tree_map

    from snn_repro.data import batches

    aten = torch.ops.aten
    reads = {aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.equal.default}
    indexing = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default, aten.index_put.default}
    values = weakref.WeakValueDictionary()  # by storage, as `x.data = y` hands on nothing else
    kept = []  # values of tensors that may have been handed on like that
    pinned: dict[int, torch.Tensor] = {}

    def there(x) -> bool:
        return isinstance(x, torch.Tensor) and x.device.type == "cuda"

    def value(x):
        return values[x.untyped_storage()._cdata] if there(x) else x

    def pin(x: torch.Tensor) -> torch.Tensor:
        pinned[x.untyped_storage()._cdata] = x
        return x

    class There(torch.Tensor):
        @staticmethod
        def __new__(cls, x):
            made = torch.Tensor._make_wrapper_subclass(
                cls, x.size(), strides=x.stride(), storage_offset=x.storage_offset(), dtype=x.dtype, device=torch.device("cuda", 0)
            )  # fmt: skip
            made.value = values[made.untyped_storage()._cdata] = x
            if device.starting:
                kept.append(x)
            return made

        def __repr__(self):
            return f"There({value(self)})"

        def tolist(self):
            device.wait("read")
            return value(self).tolist()

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            return device.run(func, args, kwargs or {})

    class Device(TorchDispatchMode):
        watched = False
        starting = True  # networks are moved, and nothing is trained yet

        def __init__(self):
            super().__init__()
            self.waits: Counter[str] = Counter()

        def wait(self, what: str) -> None:
            if self.watched:
                places = "/snn_repro/", "/torch/optim"
                ours = [f for f in traceback.extract_stack() if any(p in f.filename for p in places)]
                at = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].line}" if ours else "?"
                self.waits[f"{what} at {at}"] += 1

        def crossed(self, source, to_host: bool, at_once: bool) -> None:
            """A copy between host and device; at_once: non_blocking."""
            if to_host and not at_once:
                self.wait("read")
            elif not to_host and not at_once:
                self.wait("blocking copy")
            elif not to_host and source.untyped_storage()._cdata not in pinned:
                self.wait("copy of what is not pinned")

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return self.run(func, args, kwargs or {})

        def run(self, func, args, kwargs):
            tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, torch.Tensor)]
            on, wanted = any(map(there, tensors)), kwargs.get("device")
            if func is aten.is_pinned.default:
                return args[0].untyped_storage()._cdata in pinned
            if func is aten._pin_memory.default:
                return pin(args[0].clone())
            if kwargs.get("pin_memory"):
                return pin(func(*args, **{**kwargs, "pin_memory": False}))
            if func is aten._to_copy.default:
                source, own = args[0], dict(kwargs)
                at_once = own.pop("non_blocking", False)
                to = there(source) if own.pop("device", None) is None else torch.device(wanted).type == "cuda"
                if to != there(source):
                    self.crossed(source, not to, at_once)
                copied = func(value(source), **own)
                return There(copied) if to else copied
            if func is aten.copy_.default and there(args[0]) != there(args[1]):
                at_once = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
                self.crossed(args[1], there(args[1]), at_once)
                value(args[0]).copy_(value(args[1]))
                return args[0]
            if on and func is aten._local_scalar_dense.default:
                self.wait("read")
                return func(value(args[0]))
            if on and func in reads:
                self.wait(str(func))
            if on and func in indexing:
                for index in filter(lambda i: i is not None, args[1]):
                    if index.dtype in (torch.bool, torch.uint8) or not there(index):
                        self.wait("index from the host" if not there(index) else "index by a mask")
            elif on and (apart := [a for a in tensors if not there(a) and a.dim()]):
                raise RuntimeError(f"{func} of tensors on cuda:0 and of one on the host, {list(apart[0].shape)}")
            if wanted is not None:
                on = torch.device(wanted).type == "cuda"
                kwargs = {**kwargs, "device": torch.device("cpu")}
            found = func(*tree_map(value, args), **tree_map(value, kwargs))
            if not on:
                return found
            given = {id(value(a)): a for a in tensors if there(a)}  # what works in place returns what it was given
            back = lambda x: given[id(x)] if id(x) in given else There(x) if isinstance(x, torch.Tensor) else x  # noqa: E731
            return tree_map(back, found)

    def to_host(content):
        if isinstance(content, torch.Tensor):
            return value(content).detach().clone() if there(content) else content
        if isinstance(content, dict):
            return type(content)((k, to_host(v)) for k, v in content.items())
        return type(content)(map(to_host, content)) if isinstance(content, list | tuple) else content

    save, seed = torch.save, torch.zeros(16, dtype=torch.uint8)
    known = dict(
        is_available=True, device_count=1, get_device_name="a pretended GPU", get_device_capability=(9, 0), current_device=0,
        mem_get_info=(2**36, 2**36), max_memory_allocated=0, is_bf16_supported=True, get_rng_state=seed, synchronize=None,
        set_device=None, set_rng_state=None, manual_seed_all=None, _lazy_init=None, reset_peak_memory_stats=None, memory_allocated=0,
        get_device_properties=SimpleNamespace(total_memory=2**36), Event=mock.Mock(**{"elapsed_time.return_value": 1.0}),
    )  # fmt: skip
    device = Device()
    with contextlib.ExitStack() as within:
        patch = lambda of, name, by: within.enter_context(mock.patch.object(of, name, by))  # noqa: E731
        for name, answer in known.items():
            patch(torch.cuda, name, lambda *_, answer=answer, **__: answer)
        # tensors of inference mode cannot be wrapped
        inference = lambda on=True: torch.no_grad() if on else contextlib.nullcontext()  # noqa: E731
        patch(torch, "inference_mode", inference)
        patch(torch, "save", lambda content, *how, **more: save(to_host(content), *how, **more))
        patch(batches, "prefetch", lambda items: items)  # a mode is its thread's own
        patch(torch.utils.data._utils.pin_memory, "pin_memory", lambda items, *_: items)
        within.enter_context(torch.autograd.set_multithreading_enabled(False))
        within.enter_context(device)
        yield device
