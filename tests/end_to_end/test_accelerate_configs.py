"""The files of examples/accelerate, as accelerate itself reads them; the first one is started in its CPU form."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

FOLDER = Path(__file__).parents[2] / "examples" / "accelerate"
PROCESSES = {
    "one_gpu": ("NO", 1, 1),
    "one_node": ("MULTI_GPU", 1, 8),
    "four_nodes": ("MULTI_GPU", 4, 32),
    "fsdp2": ("FSDP", 1, 8),
    "deepspeed_zero2": ("DEEPSPEED", 1, 8),
}


def test_every_config_is_expected_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == PROCESSES.keys()


@pytest.mark.parametrize("name", PROCESSES)
def test_accelerate_reads_each_config_as_what_its_name_says(name: str) -> None:
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))  # refuses unknown keys
    found = str(getattr(config.distributed_type, "value", config.distributed_type))
    assert (found, config.num_machines, config.num_processes) == PROCESSES[name]
    assert config.mixed_precision == "bf16"


def test_the_sharding_configs_name_options_that_accelerate_has() -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin

    known = {f"fsdp_{name}" for name in FullyShardedDataParallelPlugin.__dataclass_fields__}
    known |= {"fsdp_version", "fsdp_auto_wrap_policy", "fsdp_state_dict_type"}
    assert yaml.safe_load((FOLDER / "fsdp2.yaml").read_text())["fsdp_config"].keys() <= known


@pytest.mark.slow
def test_the_one_gpu_config_starts_in_its_cpu_form(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from kdmcse_hf import KDMCSETrainingArguments\n"
        f"args = KDMCSETrainingArguments({str(tmp_path)!r}, use_cpu=True, bf16=True)\n"
        "print('world', args.world_size, args.device)\n"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / "one_gpu.yaml")]
    done = subprocess.run([*command, "--cpu", str(program)], capture_output=True, text=True)
    assert "world 1 cpu" in done.stdout, done.stderr


def test_the_slurm_script_starts_one_torchrun_a_node_with_the_flags_that_it_is_given(tmp_path: Path) -> None:
    commands = {
        "scontrol": 'echo "node7\nnode8"',
        "srun": 'shift && exec "$@"',  # its own flag is the first
        "torchrun": 'echo "$@"',
    }
    for name, command in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{command}\n")
        (tmp_path / name).chmod(0o755)
    script = FOLDER / "eight_nodes.sbatch"
    place = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "8", "SLURM_JOB_ID": "5"}
    command = ["bash", str(script), "--preset", "kdmcse", "--text_file", "a b.txt"]
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, env={"PATH": path, **place}, capture_output=True, text=True, check=True)
    launcher, found, flags = done.stdout.strip().partition(" examples/train_kdmcse.py ")
    assert found
    assert launcher.split() == (
        "--nnodes 8 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint node7:29500 --rdzv_id 5".split()
    )
    assert flags == "--bf16 true --resume_from_checkpoint true --preset kdmcse --text_file a b.txt"
    assert "#SBATCH --ntasks-per-node=1" in script.read_text().splitlines()
