"""Process groups and seeds of a rank."""

import logging

import torch
from megatron.core import parallel_state
from torch import distributed
from torch._C._distributed_c10d import HashStore

from asearch.training.settings import TrainerSettings


def start_parallel(settings: TrainerSettings, seed: int) -> None:
    """Initialise torch.distributed and megatron's groups once per process, then seed. World size 1 opens no port."""
    torch.set_num_threads(settings.threads)
    if not distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        logging.getLogger("megatron").setLevel(logging.ERROR)
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=settings.tensor_parallel,
            pipeline_model_parallel_size=settings.pipeline_parallel,
            context_parallel_size=settings.context_parallel,
        )
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

        model_parallel_cuda_manual_seed(seed)
