"""The environment is typed, names what is missing, and refuses a device that is not here."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from deitctl.cli.app import app
from deitctl.device import CPP_COMPILERS
from deitctl.errors import ConfigError
from deitctl.profiling import environment
from deitctl.profiling.accelerators import Gpu
from deitctl.profiling.environment import collect_env
from deitctl.records import to_json, to_object

ROOT = Path(__file__).parents[2]


def test_values_are_those_of_this_machine() -> None:
    env = collect_env("cpu", "fp32")
    assert (env.device, env.training_precision, env.inference_precision) == ("cpu", "fp32", "fp32")
    assert env.training_precision_reason == "chosen with --precision"
    assert env.packages["torch"] == version("torch")
    assert env.num_threads == torch.get_num_threads()
    assert 0 < env.free_disk_mib < 2**40
    assert env.device_memory_mib is None
    assert env.jpeg_decoder in ("torchcodec", "torchvision", "pillow")


def test_limits_of_a_container_are_those_that_it_has(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DEITCTL_CACHE", str(tmp_path / "cache"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        env = collect_env("cpu", "fp32")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert env.max_open_files == 200
    assert (env.home, env.cache_dir) == (str(tmp_path), str(tmp_path / "cache"))
    assert env.cache_is_writable
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(environment, "SHARED_MEMORY", str(tmp_path))
    free = collect_env("cpu", "fp32").free_shared_memory_mib
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free / 2**20, rel=0.1)
    monkeypatch.setattr(environment, "SHARED_MEMORY", str(tmp_path / "gone"))
    assert collect_env("cpu", "fp32").free_shared_memory_mib is None


@pytest.mark.unprivileged
def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path) -> None:
    tmp_path.chmod(0o555)
    monkeypatch.setenv("DEITCTL_CACHE", str(tmp_path / "cache"))
    assert not collect_env("cpu", "fp32").cache_is_writable


def test_a_missing_package_is_null_and_named_by_its_extra(monkeypatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setattr(
        environment, "EXTRAS", {"all": ("json",), "none": ("json", "no_such_module")}
    )
    env = collect_env("cpu", "auto")
    assert env.packages == {"torch": version("torch"), "no-such-package": None}
    assert env.missing_packages == {"all": [], "none": ["no_such_module"]}
    table = CliRunner().invoke(app, ["doctor", "--device", "cpu", "--format", "table"]).stdout
    assert re.search(r"extra all +│ installed", table)
    assert re.search(r"extra none +│ missing: pip install no_such_module", table)


def test_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {
        extra: tuple(
            re.match(r"[\w-]+", requirement)[0].replace("-", "_") for requirement in requirements
        )
        for extra, requirements in project["optional-dependencies"].items()
        if extra != "test"
    }
    assert declared == environment.EXTRAS


def test_settings_of_the_device_are_short_typed_values() -> None:
    settings = to_json(collect_env("cpu", "bf16").device_settings)
    assert settings.pop("keeps_freed_memory") in (True, False)
    assert settings == {
        "attention": "cpu_backward",
        "channels_last": "convnets",
        "max_activation_mib": 32,
        "pins_memory": False,
        "skips_dropped_branches": True,
    }
    assert collect_env("cpu", "fp32").device_settings.attention == "torch"


def test_what_torch_computes_with_is_that_of_this_machine() -> None:
    env = collect_env("cpu", "fp32")
    assert (env.gpus, env.nccl, env.num_processes) == ([], None, 1)
    assert (env.mps_is_available, env.rounds_to_tf32, env.compiles_by_default) == (False,) * 3
    query = torch.zeros(2, 3, 198, 64, requires_grad=True)
    output = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert env.attention_kernel in type(output.grad_fn).__name__.lower()
    assert env.compiler in (*CPP_COMPILERS, os.environ.get("CXX"), None)


def test_every_gpu_has_a_line(monkeypatch) -> None:
    gpus = [Gpu(name=f"NVIDIA H100 {n}", memory_mib=81_559, capability="9.0") for n in "AB"]
    monkeypatch.setattr(environment, "list_gpus", lambda: gpus)
    table = CliRunner().invoke(app, ["doctor", "--device", "cpu", "--format", "table"]).stdout
    assert re.search(r"cuda:1 +│ NVIDIA H100 B, 81,559 MiB, 9\.0", table)


def test_processes_of_torchrun_are_counted(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert collect_env("cpu", "fp32").num_processes == 4


def test_an_unavailable_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="no device"):
        collect_env("tpu", "auto")


def test_doctor_prints_the_same_as_json_and_as_a_table(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("DEITCTL_WEIGHTS", str(tmp_path))
    arguments = ["doctor", "--device", "cpu", "--precision", "fp32", "--format"]
    values = json.loads(CliRunner().invoke(app, [*arguments, "json"]).stdout)
    assert set(values) == set(to_object(collect_env("cpu", "fp32")))
    assert (values["schema_version"], values["weights_dir"]) == (1, str(tmp_path))
    table = CliRunner().invoke(app, [*arguments, "table"], env={"COLUMNS": "120"}).stdout
    assert "training precision" in table
    assert f"{values['num_cores']}" in table
