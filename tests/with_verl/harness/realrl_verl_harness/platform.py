"""verl's platform `cpu`: a logical GPU of Ray is a process, gloo connects them, and there is no device memory to manage."""

import types
from contextlib import contextmanager

import torch
import torch.distributed
from verl.plugin.platform import PlatformBase, PlatformRegistry, platform_manager


class _Device(types.ModuleType):
    """Stands in for `torch.cuda`: what `torch.cpu` lacks does nothing, memory is 16 GiB of which none is used."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        known = {
            "mem_get_info": lambda *_: (1 << 34, 1 << 34),
            "get_device_properties": lambda *_: types.SimpleNamespace(total_memory=1 << 34),
            "get_device_name": lambda *_: "cpu",
            "get_rng_state": lambda *_: torch.get_rng_state(),
            "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        }
        if hasattr(torch.cpu, name):
            return getattr(torch.cpu, name)
        if name.startswith(("memory_", "max_memory_")):
            return lambda *_: 0
        return known.get(name, lambda *_, **__: None)


_DEVICE = _Device("cpu_device")


@PlatformRegistry.register(platform="cpu")
class CPUPlatform(PlatformBase):
    device_name = property(lambda self: "cpu")
    vendor_name = property(lambda self: "cpu")
    device_module = property(lambda self: _DEVICE)

    def is_available(self):
        return True

    def current_device(self):
        return torch.device("cpu")

    def device_count(self):
        return 1

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def _nothing(self, *_, **__):
        return None

    set_device = synchronize = set_allocator_settings = empty_cache = profiler_start = profiler_stop = cudart = _nothing

    def get_device_capability(self, index=0):
        return (None, None)

    def communication_backend_name(self):
        return "gloo"

    def visible_devices_envvar(self):
        return "CPU_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, message):
        yield

    def ray_resource_name(self):
        return "GPU"

    def ray_noset_envvars(self):
        return []

    def is_ipc_supported(self):
        return False


def install() -> None:
    # verl.utils.device has asked for the platform before plugins are loaded.
    platform_manager._current_platform = CPUPlatform()
    begin = torch.distributed.init_process_group

    def init_process_group(*args, backend=None, **options):
        # verl names one backend for the CPU and one for the device, which here are the same.
        return begin(*args, backend="cpu:gloo" if backend == "cpu:gloo,cpu:gloo" else backend, **options)

    torch.distributed.init_process_group = init_process_group
