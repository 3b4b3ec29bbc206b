"""Ranks and devices: join the group that torchrun made, shard the model, stop on a signal, leave; what a GPU can do."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from model.attention import choose_backend
from model.config import ModelConfig
from model.transformer import Transformer
from train.config import TrainConfig

BYTES_PER_WEIGHT = 16  # Weight, gradient and AdamW's two moments, all float32.
BYTES_GATHERED = 6  # Of a weight on every rank: bfloat16 to compute with, and its gradient in float32.
SMALL_SHARE_OF_MEMORY = 0.1
FELT_SHARE_OF_MEMORY = 0.05

DENSE_BF16_FLOPS = {
    "H200": 989.4e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989.4e12, "GH200": 989.4e12, "H800": 989.4e12,
    "B200": 2250e12, "A100": 312e12, "A800": 312e12, "A10G": 70e12, "A10": 125e12, "A40": 149.7e12, "L40S": 362e12,
    "L4": 121e12, "RTX 4090": 165.2e12, "RTX 3090": 71e12, "RTX 6000 Ada": 364.2e12, "RTX A6000": 154.8e12,
}  # fmt: skip
"""Operations per second by a part of the name, longer names first: NVIDIA's data sheets, without sparsity, float32
accumulation. A GPU that is not here has no MFU, rather than a guess."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PATIENCE_SECONDS = 20.0  # So long the first step may still take, compiling: torchrun kills 30 s after SIGTERM.


class AlikeError(ValueError):
    """An error that all ranks meet at the same place, so that rank 0 alone need say it."""


@dataclass(frozen=True)
class Placement:
    """Where this process stands: its rank among world_size, and its device."""

    rank: int
    world_size: int
    device: torch.device

    def say(self, text: str) -> None:
        """Print a line, on rank 0 only."""
        if self.rank == 0:
            print(text, flush=True)


def resolve_device(wanted: str) -> str:
    """Either "cpu" or "cuda". Raises ValueError if CUDA is wanted and absent."""
    is_cuda_here = torch.cuda.is_available()
    if wanted == "cuda" and not is_cuda_here:
        raise ValueError("--device cuda: torch sees no GPU here; use --device cpu, or install a CUDA build of torch")
    return ("cuda" if is_cuda_here else "cpu") if wanted == "auto" else wanted


def from_torchrun(name: str, default: int) -> int:
    """RANK, WORLD_SIZE, LOCAL_RANK or LOCAL_WORLD_SIZE as torchrun set it; the default without torchrun."""
    return int(os.environ.get(name, default))


def start_ranks(device_type: str) -> Placement:
    """Join the process group: NCCL for CUDA, gloo for the CPU. Without torchrun, a group of one."""
    rank, world_size = from_torchrun("RANK", 0), from_torchrun("WORLD_SIZE", 1)
    device = torch.device("cpu")
    if device_type == "cuda":
        device = torch.device("cuda", from_torchrun("LOCAL_RANK", 0))
        torch.cuda.set_device(device)
    # gloo beside NCCL, for the objects that checkpoints exchange: over NCCL they would need memory of a full GPU.
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    store = dist.HashStore() if world_size == 1 else None
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    return Placement(rank=rank, world_size=world_size, device=device)


def print_error(error: Exception | str) -> None:
    """One line on stderr: from each rank that meets an error of its own, from rank 0 where all meet it."""
    rank = from_torchrun("RANK", 0)
    is_own = dist.is_initialized() and not isinstance(error, AlikeError)
    if rank == 0 or is_own:
        print(f"[rank {rank}] error: {error}" if rank else f"error: {error}", file=sys.stderr)


def stop_ranks(*, in_order: bool) -> None:
    """Leave the process group. In order: once all ranks have come this far, so that none loses its partner."""
    if not dist.is_initialized():
        return
    if in_order:
        dist.barrier()
    dist.destroy_process_group()


class StopRequestedError(Exception):
    """A signal asked one of the ranks to stop; raised on all of them by the same call of `StopRequest.check`."""


class StopRequest:
    """Whether a signal asked this process to stop, from __enter__ to __exit__."""

    received = 0  # The signal's number.
    has_work = False  # Whether a step was done since the start, so that there is something to save.
    _timer: threading.Timer | None = None

    def __enter__(self) -> "StopRequest":
        self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._timer:
            self._timer.cancel()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if not self.has_work and self._timer is None:
            self._timer = threading.Timer(PATIENCE_SECONDS, self._leave)
            self._timer.start()

    def _leave(self) -> None:
        """End the process where it is: nothing was trained, so nothing is lost."""
        if not self.has_work:
            print(f"stopped by {signal.Signals(self.received).name} before the first step was done", flush=True)
            os._exit(0)

    def check(self) -> None:
        """Raises StopRequestedError on every rank if any has received a signal; all ranks call it alike. The ranks
        agree over gloo, a fraction of a millisecond between their hosts: the GPU is not waited for."""
        received = torch.tensor(self.received)
        dist.all_reduce(received, op=dist.ReduceOp.MAX)
        if received:
            raise StopRequestedError(signal.Signals(int(received)).name)


def end_process(main: Callable[[], int]) -> NoReturn:
    """Run an entry point that joins a process group, then end the process at once with its exit code. The interpreter
    is not shut down: a gloo thread may still hold a tensor of the last collective, and Python before 3.14 unwinds a
    thread that asks for the GIL during the shutdown, to drop it. The rank would die of SIGABRT."""
    try:
        code = main()
    except SystemExit:
        raise  # of flags and help, before any group
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def build_model(shape: ModelConfig, config: TrainConfig, *, placement: Placement) -> Transformer:
    """The model with its first weights, which are the same at every world size, sharded over the ranks; one CPU process
    has nothing to shard. On CUDA it computes in bfloat16 from float32 weights, and sums gradients in float32."""
    backend = choose_backend(config.attention, device_type=placement.device.type)
    with torch.device("meta"):
        model = Transformer(shape, attention_backend=backend, recompute=config.activation_checkpointing)
    if is_compiled(config, placement.device):
        model.compile_blocks()
    if placement.world_size > 1 or placement.device.type == "cuda":
        _shard(model, config, placement=placement)
    model.to_empty(device=placement.device)
    model.init_weights(config.seed, write=_write_part)
    return model


def is_compiled(config: TrainConfig, device: torch.device) -> bool:
    """Whether torch.compile makes the blocks' code."""
    return config.compile == "on" or (config.compile == "auto" and device.type == "cuda")


def num_parts(config: TrainConfig, shape: ModelConfig, *, device: torch.device, world_size: int) -> int:
    """Into how many parts, one a rank, a copy of the model is cut."""
    is_small = device.type == "cuda" and takes_little(BYTES_PER_WEIGHT, shape, device=device)
    if config.sharding == "replicate" or (config.sharding == "auto" and is_small):
        return 1
    return from_torchrun("LOCAL_WORLD_SIZE", world_size) if config.sharding == "hybrid" else world_size


def takes_little(bytes_per_weight: int, shape: ModelConfig, *, device: torch.device) -> bool:
    """Whether so many bytes for each of the model's weights are a small part of a device's memory."""
    return bytes_per_weight * shape.num_parameters() < SMALL_SHARE_OF_MEMORY * memory_bytes(device)


def _shard(model: Transformer, config: TrainConfig, *, placement: Placement) -> None:
    """FSDP2: each block a unit, embedding, norm and head with the root. Gradients are summed, not averaged."""
    device, ranks = placement.device, placement.world_size
    parts = num_parts(config, model.config, device=device, world_size=ranks)
    # The ranks as (copies, parts of a copy), or as parts alone.
    shape, names = ((ranks,), None) if parts == ranks else ((ranks // parts, parts), ("copies", "parts"))
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    # Inputs are not cast, so that the rotary tables stay float32.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    # Gathered again for the backward pass only where the gathered weights would be felt in memory: two bytes each.
    is_large = 2 * model.config.num_parameters() > FELT_SHARE_OF_MEMORY * memory_bytes(device)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=is_large)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the tokens of the whole step, so the ranks' gradients add up to the mean.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def exchange_gradients(model: Transformer, *, is_last: bool) -> None:
    """Before each micro-batch of a step: whether its backward pass ends the step. Where gathered weights and gradients
    are small, they stay until then, so that a step gathers and sums once; else each micro-batch does."""
    device = next(model.parameters()).device
    if isinstance(model, FSDPModule) and takes_little(BYTES_GATHERED, model.config, device=device):
        model.set_requires_gradient_sync(is_last)
        model.set_reshard_after_backward(is_last)


def _write_part(parameter: Tensor, full_weight: Tensor) -> None:
    """Copy a full weight into a parameter, or this rank's part of it into a sharded one, without communication."""
    if isinstance(parameter, DTensor):
        full_weight = full_weight.to(parameter.device)
        full_weight = distribute_tensor(full_weight, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(full_weight)


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, on each."""
    dist.all_reduce(values)
    return values


def peak_flops(device_name: str) -> float | None:
    """The dense bfloat16 peak of a GPU by the name that the driver gives it, or None if it is not known."""
    known = sorted(DENSE_BF16_FLOPS, key=len, reverse=True)
    if "Laptop" in device_name:  # another chip under the same name
        return None
    # A whole word, so that an A100 is no A10.
    words = f" {device_name.replace('-', ' ')} "
    return next((DENSE_BF16_FLOPS[name] for name in known if f" {name} " in words), None)


def device_name(device: torch.device) -> str:
    """The GPU's name, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def memory_bytes(device: torch.device) -> int:
    """The memory of a GPU, or as much of it as this process may take; on a CPU that of the machine."""
    if device.type == "cuda":
        share = torch.cuda.get_per_process_memory_fraction(device)
        return int(share * torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
