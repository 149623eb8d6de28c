"""SLURM's variables: processes that srun started find each other, all others are alone."""

import os

import pytest
import torch

from imagenette_zoo.errors import UserError
from imagenette_zoo.utils.distributed import choose_device, join
from imagenette_zoo.utils.launch import _first_node, read_slurm

OURS = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')
JOB = {'SLURM_JOB_ID': '17', 'SLURM_NTASKS': '4', 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0', 'SLURM_JOB_NODELIST': 'b'}
STEP = {'SLURM_STEP_ID': '2', 'SLURM_STEP_NUM_TASKS': '4', 'SLURM_STEP_NODELIST': 'gpu[3-4]'}
MEETING = {'MASTER_ADDR': 'gpu3', 'MASTER_PORT': '29500'}


def read(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> dict[str, str]:
    """What torch finds in the environment afterwards."""
    with monkeypatch.context() as patch:
        for name in list(os.environ):
            if name in OURS or name.startswith('SLURM_'):
                patch.delenv(name)
        for name in OURS:  # so that they are gone afterwards
            patch.setenv(name, '')
            patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        read_slurm()
        return {name: os.environ[name] for name in OURS if name in os.environ}


def test_processes_of_srun_are_ranked_and_meet_at_the_first_node(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(monkeypatch, {**JOB, **STEP, 'SLURM_PROCID': '3', 'SLURM_LOCALID': '1'})
    port = found.pop('MASTER_PORT')
    assert found == {'RANK': '3', 'LOCAL_RANK': '1', 'WORLD_SIZE': '4', 'MASTER_ADDR': 'gpu3'}
    assert read(monkeypatch, {**JOB, **STEP})['MASTER_PORT'] == port, 'the same for all of a step'
    assert read(monkeypatch, {**JOB, **STEP, 'SLURM_STEP_ID': '3'})['MASTER_PORT'] != port, 'another for another step'
    assert read(monkeypatch, {**JOB, **STEP, **MEETING}).items() >= MEETING.items(), 'what the script says holds'


@pytest.mark.parametrize(
    ('variables', 'gpus', 'own'), [({}, 1, 1), (STEP, 1, 0), (STEP, 2, 1)], ids=['torchrun', 'a GPU a task', 'srun']
)
def test_which_gpu_is_a_process_own(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], gpus: int, own: int
) -> None:
    for name, value in {'LOCAL_RANK': '1', **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    made: list[object] = []
    monkeypatch.setattr(torch, 'empty', lambda *size, device: made.append(device))
    assert choose_device('cuda') == torch.device('cuda', own)
    assert made == [torch.device('cuda', own)]


@pytest.mark.parametrize(
    'variables',
    [
        JOB,  # the script of sbatch itself
        {**JOB, 'SLURM_NTASKS': '1'},
        {**JOB, 'SLURM_STEP_ID': '4294967290', 'SLURM_STEP_NUM_TASKS': '1'},  # the shell of salloc
        {**JOB, **STEP, 'SLURM_STEP_NUM_TASKS': '1', 'SLURM_NTASKS': '1'},
        {**JOB, **STEP, 'WORLD_SIZE': '1'},  # trainings that know nothing of one another
        {**JOB, **STEP, 'RANK': '1', 'LOCAL_RANK': '1', 'WORLD_SIZE': '2', **MEETING},  # torchrun within a step
    ],
)
def test_what_is_alone_or_of_torchrun_stays(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    assert read(monkeypatch, variables) == {name: value for name, value in variables.items() if name in OURS}


@pytest.mark.parametrize(
    'variables', [{**JOB, **MEETING}, {**JOB, **MEETING, 'WORLD_SIZE': '4'}, {**JOB, 'SLURM_PROCID': '2'}]
)
def test_the_variables_that_timm_needs_are_enough(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    from timm.utils.distributed import world_info_from_env

    found = read(monkeypatch, variables)
    with monkeypatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        assert [int(found[name]) for name in ('LOCAL_RANK', 'RANK', 'WORLD_SIZE')] == list(world_info_from_env())


@pytest.mark.parametrize(
    ('nodes', 'first'),
    [('tux', 'tux'), ('tux[1-3,5]', 'tux1'), ('gpu[003,7],cpu1', 'gpu003'), ('a[1-2]-ib', 'a1-ib'), ('', '127.0.0.1')],
)
def test_the_first_of_a_list_of_nodes(nodes: str, first: str) -> None:
    assert _first_node(nodes) == first


@pytest.mark.parametrize('size', ['two', '0', '-1'])
def test_a_size_that_is_no_number_of_processes_is_one_line(monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    monkeypatch.setenv('WORLD_SIZE', size)
    with pytest.raises(UserError, match=f'^WORLD_SIZE={size}: is no number of processes'):
        join('cpu')
    monkeypatch.setenv('WORLD_SIZE', '')
    assert join('cpu').size == 1


def test_a_device_that_computes_nothing_is_none() -> None:
    with pytest.raises(UserError, match='--device meta: not on this machine'):
        choose_device('meta')
