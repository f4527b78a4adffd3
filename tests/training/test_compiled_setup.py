"""A run that chooses by itself whether it is compiled, on a CPU that stands for a GPU; and what it goes on with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deitctl.device import Device, choose_device
from deitctl.errors import ConfigError
from deitctl.events import SilentReporter
from deitctl.models.compiled import is_compiled
from deitctl.training import compile_choice, compiled_setup
from deitctl.training.build import build_student, build_training
from deitctl.training.compile_choice import ASSUMED_GRAPH_S, Decision, Figures, read_decision
from deitctl.training.compiled_setup import compile_setup
from deitctl.training.device_batch import place_batch
from deitctl.training.engine import build_engine
from deitctl.training.estimate import load_batch, repeat_batch
from deitctl.training.graphed_engine import Graphed
from deitctl.training.step import forward_backward

CPU = choose_device("cpu", "fp32")


@pytest.fixture(autouse=True)
def restored(monkeypatch, tmp_path):
    monkeypatch.setenv("DEITCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    yield
    torch._dynamo.reset()


@pytest.fixture
def make_setup(little_config, little):
    def make(**changes):
        config = little_config("run", model_args={"depth": 1, "embed_dim": 48}, **changes)
        student = build_student(config, little[0], SilentReporter())
        return build_training(config, student, *little, device=CPU, reporter=SilentReporter())

    return make


def run_as_written(graph, inputs, **settings):
    """A backend of torch.compile that compiles nothing."""
    return graph.forward


def fail(graph, inputs, **settings):
    """A backend that is not for this machine."""
    raise RuntimeError("this GPU is too old\nline 7 of a long traceback")


@pytest.fixture
def on_gpu(monkeypatch):
    """Choose as on CUDA."""
    monkeypatch.setattr(Device, "compiles_by_default", True)


@pytest.mark.usefixtures("on_gpu")
def test_a_run_measures_once_and_its_resume_repeats_what_was_chosen(
    make_setup, tmp_path, reporter, monkeypatch
):
    setup = make_setup()
    # Compiling seems to cost nothing: it is measured, and images of a graph that is not compiled gain little.
    monkeypatch.setattr(compile_choice, "ASSUMED_GRAPH_S", 0.0)
    before = {name: value.clone() for name, value in setup.state.model.state_dict().items()}
    chosen = compile_setup(setup, tmp_path, reporter, backend=run_as_written)
    decision = read_decision(tmp_path)
    assert decision is not None
    assert decision.figures is not None
    assert (
        decision.compiled
        == (chosen.context.compiler is not None)
        == is_compiled(chosen.state.model)
    )
    assert len(reporter.notes) == 1
    assert "ms an image" in reporter.notes[0]
    for name, value in setup.state.model.state_dict().items():
        assert torch.equal(value, before[name]), name

    other = replace(decision, compiled=not decision.compiled)
    compile_choice.write_decision(tmp_path, other)
    again = compile_setup(make_setup(), tmp_path, reporter, backend=run_as_written)
    assert (again.context.compiler is not None) == other.compiled
    assert len(reporter.notes) == 1


@pytest.mark.usefixtures("on_gpu")
def test_a_short_run_is_not_compiled_to_find_out(make_setup, tmp_path, reporter):
    assert ASSUMED_GRAPH_S > 10
    setup = compile_setup(make_setup(), tmp_path, reporter, backend=fail)
    assert setup.context.compiler is None
    assert "(assumed)" in reporter.notes[0]


@pytest.mark.usefixtures("on_gpu")
def test_figures_of_an_earlier_run_decide(make_setup, tmp_path, reporter, monkeypatch):
    figures = Figures(eager_image=1.0, compiled_image=1e-9, graph=1e-9)
    monkeypatch.setattr(compiled_setup, "read_figures", lambda key: figures)
    setup = compile_setup(make_setup(), tmp_path, reporter, backend=run_as_written)
    assert setup.context.compiler is not None
    assert "(measured before)" in reporter.notes[0]


@pytest.mark.usefixtures("on_gpu")
def test_where_the_compiler_fails_a_note_says_why_and_the_run_goes_on(
    make_setup, tmp_path, reporter, monkeypatch
):
    monkeypatch.setattr(compile_choice, "ASSUMED_GRAPH_S", 0.0)
    setup = compile_setup(make_setup(), tmp_path, reporter, backend=fail)
    assert setup.context.compiler is None
    assert not is_compiled(setup.state.model)
    decision = read_decision(tmp_path)
    assert decision is not None
    assert not decision.compiled
    assert "this GPU is too old" in decision.reason
    assert "this GPU is too old" in reporter.notes[0]
    assert "line 7" not in "".join(reporter.notes)


def run_out(self):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(
    ("place", "name", "stand_in", "reason"),
    [
        (compiled_setup, "fits_copy", lambda setup, free: False, compiled_setup.NO_ROOM),
        (compiled_setup, "load_batch", lambda setup: (0.0, None), compiled_setup.NO_BATCH),
        (compiled_setup.CopiedStep, "measure", run_out, compiled_setup.RAN_OUT),
    ],
)
def test_what_could_not_be_measured_is_not_measured_by_a_resume(
    make_setup, tmp_path, reporter, monkeypatch, place, name, stand_in, reason
):
    with monkeypatch.context() as patch:
        patch.setattr(place, name, stand_in)
        compile_setup(make_setup(), tmp_path, reporter, backend=fail)
    assert reporter.notes == [f"Not compiled: {reason}."]
    assert read_decision(tmp_path) == Decision(compiled=False, device="cpu", reason=reason)

    figures = Figures(eager_image=1.0, compiled_image=1e-9, graph=1e-9)
    monkeypatch.setattr(compiled_setup, "read_figures", lambda key: figures)
    again = compile_setup(make_setup(), tmp_path, reporter, backend=run_as_written)
    assert again.context.compiler is None
    assert len(reporter.notes) == 1


@pytest.mark.usefixtures("on_gpu")
def test_no_time_decides_a_deterministic_run_and_a_compiled_one_times_no_kernel(
    make_setup, tmp_path, reporter, monkeypatch
):
    def make(**changes):
        setup = make_setup(**changes)
        device = replace(setup.context.device, deterministic=True)
        return replace(setup, context=replace(setup.context, device=device))

    def measure(setup, compiler):
        raise AssertionError("a step is timed")

    monkeypatch.setattr(compiled_setup, "measure_choice", measure)
    assert compile_setup(make(), tmp_path, reporter).context.compiler is None
    decision = read_decision(tmp_path)
    assert decision is not None
    assert not decision.compiled
    assert reporter.notes == [f"Not compiled: {compiled_setup.TIMES_DIFFER}."]

    settings = list[dict[str, object]]()

    def compile(function, **own):
        settings.append(own)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    compile_setup(make(compile="on"), tmp_path, reporter)
    has_switch = hasattr(torch._inductor.config, "deterministic")
    assert [own.get("options") for own in settings] == [
        {"deterministic": True} if has_switch else None
    ] * len(settings)
    assert settings
    settings.clear()
    compile_setup(make_setup(compile="on"), tmp_path, reporter)
    assert all("options" not in own for own in settings)


@pytest.mark.usefixtures("on_gpu")
def test_graphs_of_the_measurement_are_dropped_before_memory_is_freed(
    make_setup, tmp_path, reporter, monkeypatch
):
    calls, reset = list[str](), torch._dynamo.reset
    monkeypatch.setattr(torch._dynamo, "reset", lambda: calls.append("reset") or reset())
    monkeypatch.setattr(Device, "empty_cache", lambda self: calls.append("freed"))
    compile_setup(make_setup(), tmp_path, reporter, backend=fail)
    assert calls[-2:] == ["reset", "freed"]
    assert calls.count("reset") == 2  # the other is before it


def test_a_compiler_that_is_required_and_fails_is_an_error(make_setup, tmp_path, reporter):
    setup = compile_setup(make_setup(compile="on"), tmp_path, reporter, backend=fail)
    _, batch = load_batch(setup)
    placed = place_batch(setup.context, setup.state, batch, 0)
    with pytest.raises(ConfigError, match="cannot compile this model: .*GPU is too old") as caught:
        forward_backward(setup.engine, placed, reporter)
    assert "--no-compile" in caught.value.hint


def test_a_cpu_compiles_nothing_unless_it_is_requested(make_setup, tmp_path, reporter):
    setup = make_setup()
    assert compile_setup(setup, tmp_path, reporter) is setup
    assert not reporter.notes
    assert read_decision(tmp_path) is None


@pytest.mark.parametrize(
    ("compile", "reason"), [("off", "of compiled steps"), ("on", "device is cpu")]
)
def test_cuda_graphs_are_refused_where_there_are_none(
    make_setup, tmp_path, reporter, compile, reason
):
    setup = make_setup(compile=compile, cuda_graphs=True)
    with pytest.raises(ConfigError, match=f"--cuda-graphs is not possible: .*{reason}"):
        compile_setup(setup, tmp_path, reporter)


@pytest.mark.usefixtures("on_gpu")
def test_cuda_graphs_compile_whatever_a_measurement_would_say(
    make_setup, tmp_path, reporter, monkeypatch
):
    monkeypatch.setattr(compiled_setup, "check_cuda_graphs", lambda setup: None)
    setup = compile_setup(make_setup(cuda_graphs=True), tmp_path, reporter, backend=run_as_written)
    assert setup.config.compile == "auto"
    assert isinstance(setup.engine, Graphed)
    assert setup.context.compiler is not None
    assert setup.context.compiler.is_required
    with pytest.raises(ConfigError) as caught:
        setup.context.compiler.give_up(RuntimeError("too old"))
    assert "Leave --cuda-graphs out." in caught.value.hint
    assert not reporter.notes


def test_gradients_outlive_the_memory_of_a_graph_that_the_next_one_overwrites(
    make_setup, tmp_path, reporter, monkeypatch
):
    monkeypatch.setattr(compiled_setup, "check_cuda_graphs", lambda setup: None)
    setup = make_setup(compile="on", cuda_graphs=True, micro_batch_size=2)
    _, batch = load_batch(setup)
    batch = repeat_batch(batch, 6)
    expected = build_engine(setup.context, setup.state)
    forward_backward(expected, place_batch(setup.context, setup.state, batch, 0), reporter)
    grads = [p.grad.clone() for p in setup.state.model.parameters() if p.grad is not None]

    setup = compile_setup(setup, tmp_path, reporter, backend=run_as_written)
    assert isinstance(setup.engine, Graphed)
    parameters = [p for _, p in setup.state.named_parameters()]
    of_graph: list[torch.Tensor] = []

    def overwrite() -> None:
        for memory in of_graph:
            memory.fill_(float("nan"))
        of_graph.clear()

    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", overwrite)
    backward = torch.Tensor.backward

    def replay(*arguments, **settings):
        had_none = all(p.grad is None for p in parameters)
        backward(*arguments, **settings)
        if had_none:  # autograd takes the first gradients as they are, in the memory of the graph
            of_graph.extend(p.grad for p in parameters if p.grad is not None)

    monkeypatch.setattr(torch.Tensor, "backward", replay)
    forward_backward(setup.engine, place_batch(setup.context, setup.state, batch, 0), reporter)
    own = [p.grad for p in setup.state.model.parameters() if p.grad is not None]
    torch.testing.assert_close(own, grads)
