"""Ranks and devices: join the group that torchrun made, shard the model over it, leave it in order."""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from model.config import ModelConfig
from model.transformer import Transformer
from train.config import TrainConfig
from train.hardware import memory_bytes

BYTES_PER_WEIGHT = 16
"""Weight, gradient and AdamW's two moments, all float32."""
SMALL_SHARE_OF_MEMORY = 0.1
FELT_SHARE_OF_MEMORY = 0.05


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
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here; use --device cpu, or install a CUDA build of torch")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def rank_from_environment() -> int:
    """The rank that torchrun gave this process; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size_from_environment() -> int:
    """The number of ranks that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size_from_environment(world_size: int) -> int:
    """The number of ranks that torchrun started on this machine; all without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size))


def start_ranks(device_type: str) -> Placement:
    """Join the process group: NCCL for CUDA, gloo for the CPU. Without torchrun, a group of one.

    The threads of a CPU rank are OMP_NUM_THREADS, which torchrun sets to 1 for several ranks where the user did not.
    """
    rank, world_size = rank_from_environment(), world_size_from_environment()
    device = torch.device("cpu")
    if device_type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    # gloo beside NCCL, for the objects that checkpoints exchange: over NCCL they would need memory of a full GPU.
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    if world_size > 1:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return Placement(rank=rank, world_size=world_size, device=device)


def print_error(error: Exception | str) -> None:
    """One line on stderr: from every rank that meets an error of its own, from rank 0 alone where all meet it.

    Before the ranks have joined, all of them check the same settings and data.
    """
    rank = rank_from_environment()
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


def end_process(main: Callable[[], int]) -> NoReturn:
    """Run an entry point that joins a process group, then end the process at once with its exit code.

    The interpreter is not shut down. A gloo thread may still hold a tensor of the last collective even after
    `stop_ranks`, since device meshes and torch's caches keep the group and its threads alive, and it needs the GIL to
    drop it. Python before 3.14 ends a thread that asks for the GIL during the shutdown by unwinding it, which in a
    destructor is std::terminate: the rank would die of SIGABRT although all was done and saved.
    """
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


def build_model(
    config: ModelConfig, *, attention_backend: str, settings: TrainConfig, placement: Placement
) -> Transformer:
    """The model with its first weights, sharded over the ranks. The weights are the same at every world size.

    On CUDA the blocks compute in bfloat16 from float32 weights, and gradients are summed in float32. One CPU process
    has nothing to shard.
    """
    with torch.device("meta"):
        model = Transformer(config, attention_backend=attention_backend, recompute=settings.activation_checkpointing)
    if is_compiled(settings, placement.device):
        model.compile_blocks()
    if placement.world_size > 1 or placement.device.type == "cuda":
        _shard(model, settings.sharding, placement=placement)
    model.to_empty(device=placement.device)
    model.init_weights(settings.seed, write=_write_part)
    return model


def is_compiled(settings: TrainConfig, device: torch.device) -> bool:
    """Whether torch.compile makes the blocks' code."""
    return settings.compile == "on" or (settings.compile == "auto" and device.type == "cuda")


def _shard(model: Transformer, sharding: str, *, placement: Placement) -> None:
    """FSDP2: each block a unit, embedding, norm and head with the root. Gradients are summed, not averaged."""
    mesh = _make_mesh(choose_sharding(sharding, model.config, placement=placement), placement)
    is_cuda = placement.device.type == "cuda"
    # Inputs are not cast, so that the rotary tables stay float32.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if is_cuda else torch.float32, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    # Gathered again for the backward pass only where the gathered weights would be felt in memory: two bytes each.
    is_large = 2 * model.config.num_parameters() > FELT_SHARE_OF_MEMORY * memory_bytes(placement.device)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=is_large)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the tokens of the whole step, so the ranks' gradients add up to the mean.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def choose_sharding(wanted: str, config: ModelConfig, *, placement: Placement) -> str:
    """Either full, hybrid or replicate; `auto` replicates what takes little of a GPU."""
    if wanted != "auto":
        return wanted
    is_small = BYTES_PER_WEIGHT * config.num_parameters() < SMALL_SHARE_OF_MEMORY * memory_bytes(placement.device)
    return "replicate" if is_small and placement.device.type == "cuda" else "full"


def _make_mesh(sharding: str, placement: Placement) -> DeviceMesh:
    """The ranks as (copies, parts of a copy), or as parts alone. Replicated, a copy has one part."""
    ranks = placement.world_size
    parts = {"full": ranks, "hybrid": local_world_size_from_environment(ranks), "replicate": 1}[sharding]
    if parts == ranks:
        return init_device_mesh(placement.device.type, (ranks,))
    return init_device_mesh(placement.device.type, (ranks // parts, parts), mesh_dim_names=("copies", "parts"))


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
