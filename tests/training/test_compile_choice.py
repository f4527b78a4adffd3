"""Whether a run is compiled: figures by hand, and what its folder and the cache have of them."""

from __future__ import annotations

import pytest

from deitctl.training.compile_choice import (
    ASSUMED_GAIN,
    Decision,
    Figures,
    choose,
    read_decision,
    read_figures,
    write_decision,
    write_figures,
)

# 2 ms an image, 1.5 ms compiled, 30 s a graph
FIGURES = Figures(eager_image=0.002, compiled_image=0.0015, graph=30.0)


@pytest.mark.parametrize(
    ("num_images", "num_graphs", "gain"),
    [
        (100_000, 1, 20.0),  # 50 s gained, 30 s compiled
        (60_000, 1, 0.0),  # it costs what it gains
        (100_000, 3, -40.0),
        (1_000, 0, 0.5),  # all graphs are there
    ],
)
def test_compiling_pays_where_images_gain_more_than_graphs_take(num_images, num_graphs, gain):
    assert FIGURES.compute_gain(num_images, num_graphs) == pytest.approx(gain)
    decision = choose(FIGURES, num_images, num_graphs, device="cuda", source="measured")
    assert decision.compiled == (gain > 1e-9)


def test_slower_images_are_never_compiled_and_the_sentence_says_so():
    slower = Figures(eager_image=0.002, compiled_image=0.003, graph=1.0)
    decision = choose(slower, 1e9, 0, device="cuda", source="measured")
    assert decision.describe() == (
        "Not compiled: 2 ms an image, 3 ms compiled (measured); 0 graphs take 0 s, and the "
        "1,000,000,000 images left lose 1000000 s."
    )


def test_figures_fit_a_machine_that_is_slower_now():
    scaled = FIGURES.scale_to(0.004)
    assert (scaled.eager_image, scaled.graph) == (0.004, 30.0)
    assert scaled.compiled_image == pytest.approx(0.003)
    assert Figures.assume(1.0).compiled_image == pytest.approx(1 - ASSUMED_GAIN)


def test_a_run_and_the_cache_have_what_was_decided_and_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("DEITCTL_CACHE", str(tmp_path / "cache"))
    assert read_decision(tmp_path) is None
    decision = choose(FIGURES, 100_000, 1, device="cuda", source="measured")
    write_decision(tmp_path, decision)
    again = read_decision(tmp_path)
    assert again is not None
    assert (again.compiled, again.device, again.figures) == (True, "cuda", FIGURES)
    write_decision(tmp_path, Decision(compiled=False, device="cuda", reason="no triton"))
    assert read_decision(tmp_path) == Decision(compiled=False, device="cuda", reason="no triton")

    assert read_figures("a") is None
    write_figures("a", FIGURES)
    write_figures("b", FIGURES.scale_to(1.0))
    assert read_figures("a") == FIGURES


@pytest.mark.parametrize("text", ["", "[]", '{"a": {"eager_image": 0}}', '{"a": 1}'])
def test_figures_that_are_damaged_are_measured_again(tmp_path, monkeypatch, text):
    monkeypatch.setenv("DEITCTL_CACHE", str(tmp_path))
    (tmp_path / "compiled").mkdir()
    (tmp_path / "compiled" / "figures.json").write_text(text)
    assert read_figures("a") is None
