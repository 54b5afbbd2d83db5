"""Who is there: launchers' variables, one process, GPUs. Real ranks are in tests/distributed."""

import pytest
import torch

from gpt2edu.distributed import SingleProcess, rank_zero_print, refuse_shared_gpus
from gpt2edu.errors import Gpt2EduError
from gpt2edu.launcher import launched_world


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, 1)),
        ({"PMI_RANK": "2", "PMI_SIZE": "4"}, (2, 4)),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, (0, 1)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 2)),
        ({"SLURM_PROCID": "7", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8"}, (7, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),  # a batch script, not srun
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "PMI_RANK": "3", "PMI_SIZE": "4"}, (3, 4)),
    ],
)
def test_launched_world(environ, expected):
    assert launched_world(environ) == expected


def test_one_gpu_each():
    refuse_shared_gpus([("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")])
    with pytest.raises(Gpt2EduError, match="ranks 0 and 2 would share a GPU of a: start at most 2 ranks there"):
        refuse_shared_gpus([("a", "x"), ("a", "y"), ("a", "x"), ("b", "x")])
    with pytest.raises(Gpt2EduError, match="rank 1 finds no GPU on b"):
        refuse_shared_gpus([("a", "x"), ("b", None)])


def test_single_process(capsys):
    with SingleProcess() as communicator:
        flat = torch.arange(4.0)
        communicator.reduce_scatter_mean(flat, [])
        communicator.all_gather(flat, [])
        communicator.barrier()
        communicator.require_equal("anything", 1)
        assert flat.tolist() == [0, 1, 2, 3]
        assert (communicator.broadcast(7), communicator.gather(7)) == (7, [7])
        rank_zero_print(communicator, "once")
    assert capsys.readouterr().out == "once\n"
    with pytest.raises(SystemExit) as leaving:
        communicator.abort("stop", 3)
    assert leaving.value.code == 3 and capsys.readouterr().err == "stop\n"
    with pytest.raises(Gpt2EduError), SingleProcess():
        raise Gpt2EduError("goes on to run_main")
