"""The page in a real browser: its results are Python's, no other server gets a request, errors are messages."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deitctl.data.batch_transforms import normalize
from deitctl.data.decode import read_image
from deitctl.data.eval_transform import eval_transform
from deitctl.errors import DeitctlError
from deitctl.events import SilentReporter
from deitctl.explanation.attention_maps import forward_with_attention
from deitctl.exporters import web
from deitctl.exporters.metadata import describe_model
from deitctl.exporters.network import ExportedClassifier
from deitctl.exporters.verification_images import compute_reference
from deitctl.exporters.web import FILES, export_web
from deitctl.home import CACHE_VARIABLE, cache_root
from deitctl.models.factory import LoadedModel

_spec = importlib.util.spec_from_file_location(
    "chromium", Path(__file__).parents[1] / "chromium.py"
)
assert _spec is not None
assert _spec.loader is not None
chromium = importlib.util.module_from_spec(_spec)  # tests are no package
_spec.loader.exec_module(chromium)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.CHROMIUM is None, reason="there is no Chromium"),
]
USERS_CACHE = cache_root()  # before a fixture gives each test its own
HOSTILE = "<img src=x onerror=window.harmed=1></script><script>window.harmed=1</script>"


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache with onnxruntime-web, the user's own archive: tests fetch nothing, and without one these are skipped."""
    archive = os.environ.get(web.VARIABLE) or str(USERS_CACHE / web.ARCHIVE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        try:
            web.provide_runtime(archive, SilentReporter())
        except DeitctlError as error:
            pytest.skip(str(error))
        yield


@pytest.fixture(scope="module")
def model(shallow: Callable[..., LoadedModel]) -> LoadedModel:
    """A distilled DeiT of one block that is sure of something, with a temperature and names that are not harmless."""
    loaded = shallow()
    names = tuple(f"{HOSTILE if n % 2 else 'a name that is long ' * 9} {n}" for n in range(10))
    model_config = replace(
        loaded.model_config, head="avg-probs", descriptions=names, temperatures={"avg-probs": 0.7}
    )
    return LoadedModel(loaded.model, model_config)


def write(loaded: LoadedModel, folder: Path) -> Path:
    network = ExportedClassifier(loaded.model, loaded.model_config, loaded.model_config.head)
    export_web(
        network,
        loaded.model_config,
        describe_model(loaded.model_config, loaded.model_config.head),
        folder,
    )
    return folder


@pytest.fixture(scope="module")
def folder(runtime: None, model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(model, tmp_path_factory.mktemp("web") / "page")


@pytest.fixture(scope="module")
def convnet(classifier: Callable[..., LoadedModel]) -> LoadedModel:
    loaded = classifier("test_byobnet", img_size=64)
    return LoadedModel(loaded.model, replace(loaded.model_config, head="cls"))


@pytest.fixture(scope="module")
def convnet_folder(
    runtime: None, convnet: LoadedModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write(convnet, tmp_path_factory.mktemp("web") / "convnet")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    with chromium.browser(tmp_path_factory.mktemp("chromium") / "profile") as tab:
        yield tab


@pytest.fixture
def opened(tab, folder) -> Iterator[tuple[chromium.Browser, str, list[str]]]:
    with chromium.serve(folder) as (url, requested):
        tab.open(url)
        tab.wait("document.body.dataset.state !== 'loading'")
        assert tab.js("document.getElementById('state').textContent") == "Ready."
        yield tab, url, requested


@pytest.fixture
def images(make_image, digit_datasets, tmp_path) -> list[Path]:
    """PNG of odd shapes, transparent, upright only by EXIF, of digits; and a JPEG."""
    turned = Image.Exif()
    turned[0x112] = 6
    transparent = make_image(50, 70, 4).convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize((50, 70)))
    digit_datasets[1].read(3).save(tmp_path / "digit.png")
    make_image(300, 7).save(tmp_path / "long.png")
    make_image(61, 90, 2).save(tmp_path / "turned.png", exif=turned)
    transparent.save(tmp_path / "transparent.png")
    make_image(200, 160, 3).save(tmp_path / "photo.jpg", exif=turned)
    return [
        tmp_path / n
        for n in ("digit.png", "long.png", "turned.png", "transparent.png", "photo.jpg")
    ]


def read_cards(tab) -> list[dict[str, object]]:
    """Wait for every card, and return them in the order of the page."""
    tab.wait("!document.querySelector('#results [data-state=waiting]')")
    return tab.js(
        "[...document.querySelectorAll('.card')].map(c => ({"
        "name: c.querySelector('h2').textContent, state: c.dataset.state, text: c.innerText, "
        "best: [...c.querySelectorAll('li')].map("
        "l => [Number(l.dataset.index), Number(l.dataset.probability)])}))"
    )


def scores(model: LoadedModel, path: Path) -> np.ndarray:
    view = eval_transform(read_image(path), model.model_config.preprocessing).transpose(1, 2, 0)
    return compute_reference(
        model.model, model.model_config, model.model_config.head, view[None].copy()
    )[1, 0]


def test_the_five_likeliest_classes_of_files_of_many_kinds_are_pythons(opened, model, images):
    tab, url, requested = opened
    tab.choose("#files", images)
    cards = read_cards(tab)
    assert [c["name"] for c in cards] == [p.name for p in images]
    for path, card in zip(images, cards, strict=True):
        wanted = scores(model, path)
        assert [index for index, _ in card["best"]] == np.argsort(-wanted, kind="stable")[
            :5
        ].tolist()
        np.testing.assert_allclose(
            [p for _, p in card["best"]], np.sort(wanted)[::-1][:5], atol=1e-4
        )
    assert tab.console_errors == []
    assert set(requested) <= {"/", *(f"/{name}" for name in FILES)}, (
        "one server, these files, no image"
    )
    assert all(r.startswith((url, "blob:", "data:")) for r in tab.requests)


def test_attention_of_both_tokens_is_that_of_the_last_block(opened, model, images):
    tab, _, _ = opened
    data = base64.b64encode(images[0].read_bytes()).decode()
    attention = tab.js(
        f"""new Promise((resolve) => {{
          const worker = new Worker("worker.js", {{ type: "module" }});
          const blob = new Blob([Uint8Array.from(atob("{data}"), (c) => c.charCodeAt(0))]);
          const handlers = {{
            ready: () => worker.postMessage({{ id: 0, blob }}),
            result: (result) => resolve([result.attention.grid, [...result.attention.data]]),
          }};
          worker.onmessage = ({{ data }}) => handlers[data.kind]?.(data);
        }})"""
    )
    view = eval_transform(read_image(images[0]), model.model_config.preprocessing)[None]
    normalized = normalize(torch.from_numpy(view), model.model_config.preprocessing)
    wanted = forward_with_attention(model.model, normalized).attention[-1].mean(dim=1)[0, :2, 2:]
    assert attention[0] == 2
    np.testing.assert_allclose(attention[1], wanted.flatten(), atol=1e-5)


def test_names_are_texts_whatever_they_hold_and_do_not_widen_the_page(opened, images):
    tab, _, _ = opened
    for width in (390, 1440):
        tab.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        tab.choose("#files", images)
        assert HOSTILE in " ".join(c["text"] for c in read_cards(tab))
        assert tab.js("document.documentElement.scrollWidth") <= width
    assert tab.js("window.harmed === undefined && !document.querySelector('.card img')")


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_images_can_be_pasted_and_dropped(way, opened, images):
    tab, _, _ = opened
    data = base64.b64encode(images[0].read_bytes()).decode()
    event = (
        "ClipboardEvent('paste', { clipboardData: data"
        if way == "paste"
        else "DragEvent('drop', { dataTransfer: data"
    )
    tab.js(
        f"""{{
          const data = new DataTransfer();
          const bytes = Uint8Array.from(atob("{data}"), (c) => c.charCodeAt(0));
          data.items.add(new File([bytes], "given.png", {{ type: "image/png" }}));
          document.dispatchEvent(new {event}, bubbles: true, cancelable: true }}));
        }}"""
    )
    (card,) = read_cards(tab)
    assert (card["name"], card["state"]) == ("given.png", "done")
    assert tab.js("document.getElementById('state').textContent").startswith("given.png: ")


def test_images_that_cannot_be_decoded_get_a_message_and_the_others_a_result(
    opened, images, tmp_path
):
    tab, _, _ = opened
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(images[1].read_bytes()[:200])
    Image.new("1", (12_000, 9_000)).save(tmp_path / "huge.png")
    tab.choose("#files", [*(tmp_path / n for n in ("text.png", "cut.png", "huge.png")), images[0]])
    text, cut, huge, digit = read_cards(tab)
    assert "not an image that the browser can read" in text["text"]
    assert (text["state"], cut["state"], huge["state"]) == ("failed",) * 3
    assert "It has 12000 × 9000 pixels, more than 100,000,000." in huge["text"]
    assert digit["state"] == "done"
    assert tab.js("document.getElementById('state').textContent") == "4 images are done."
    assert tab.js("document.getElementById('results').getAttribute('aria-busy')") == "false"


def test_images_chosen_while_the_model_loads_wait_for_it(tab, folder, images):
    with chromium.serve(folder) as (url, _):
        tab.open(url)
        tab.choose("#files", images[:2])
        assert [c["state"] for c in read_cards(tab)] == ["done"] * 2


def test_the_keyboard_chooses_and_clears(opened, images):
    tab, _, _ = opened
    tab.js(
        "document.getElementById('files').addEventListener('click', (e) => { window.clicked = 1; e.preventDefault(); })"
    )
    tab.press("Tab")
    assert tab.js("document.activeElement.id") == "choose"
    tab.press("Enter")
    tab.wait("window.clicked === 1")
    tab.choose("#files", images[:1])
    read_cards(tab)
    tab.press("Tab")
    assert tab.js("document.activeElement.id") == "clear"
    tab.press("Enter")
    tab.wait("document.querySelectorAll('.card').length === 0")
    assert tab.js("document.activeElement.id") == "choose"


def test_screen_readers_get_results_and_descriptions_of_the_maps(opened, images):
    tab, _, _ = opened
    tab.choose("#files", images[:1])
    read_cards(tab)
    nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
    roles = [
        (n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"]
    ]
    assert ("button", "Choose images") in roles
    assert ("region", "Results") in roles
    assert ("list", "Top-5 classes") in roles
    descriptions = [name for role, name in roles if role in ("image", "img")]
    assert descriptions[0] == "digit.png, the model's input"
    assert descriptions[1].startswith("digit.png: the class token attends most to the ")
    assert descriptions[2].startswith("digit.png: the distillation token attends most to the ")


def test_not_even_the_worker_may_connect_elsewhere(tab, folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    page = shutil.copytree(folder, tmp_path / "page")
    with (
        chromium.serve(tmp_path / "elsewhere") as (other, requested),
        chromium.serve(page) as (url, _),
    ):
        with (page / "worker.js").open("a") as script:
            script.write(
                f'fetch("{other}", {{ mode: "no-cors" }}).catch(() => 0).then(() => postMessage({{ kind: "tried" }}));'
            )
        tab.open(url)
        tab.wait("document.body.dataset.state === 'ready'")
        assert requested == []
        assert any(
            "violates the following Content Security Policy" in c for c in tab.console_errors
        )
        tab.js(
            """new Promise((resolve) => {
              const worker = new Worker("worker.js", { type: "module" });
              worker.onmessage = ({ data }) => data.kind === "tried" && resolve(0);
            })"""
        )
        assert requested == ["/"], (
            "without the page's policy it gets there, so that the test above says something"
        )


def test_threads_are_used_where_the_server_allows_them(tab, folder, model, images):
    headers = {
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Embedder-Policy": "require-corp",
    }
    with chromium.serve(folder, headers) as (url, _):
        tab.open(url)
        tab.wait("document.body.dataset.state !== 'loading'")
        assert tab.js("[crossOriginIsolated, document.body.dataset.state]") == [True, "ready"]
        tab.choose("#files", images[:1])
        (card,) = read_cards(tab)
        wanted = np.sort(scores(model, images[0]))[::-1][:5]
        np.testing.assert_allclose([p for _, p in card["best"]], wanted, atol=1e-4)
        assert tab.console_errors == []


def test_opened_as_a_file_it_says_to_serve_it(tab, folder):
    tab.open(folder / "index.html")
    assert "This folder has to be served" in tab.js("document.getElementById('state').textContent")
    assert tab.js("document.getElementById('choose').disabled")


@pytest.mark.parametrize("name", ["model.onnx", "model.json", "onnxruntime.wasm"])
def test_a_part_that_is_not_there_is_named(name, tab, folder, tmp_path):
    page = shutil.copytree(folder, tmp_path / "page")
    (page / name).unlink()
    with chromium.serve(page) as (url, _):
        tab.open(url)
        tab.wait("document.body.dataset.state === 'broken'")
        assert f"The server has no {name} (404)." in tab.js(
            "document.getElementById('state').textContent"
        )


def test_missing_scripts_are_reported_too(tab, folder, tmp_path):
    page = shutil.copytree(folder, tmp_path / "page")
    (page / "onnxruntime.js").unlink()
    with chromium.serve(page) as (url, _):
        tab.open(url)
        tab.wait("document.body.dataset.state === 'broken'")
        assert "the server does not send its scripts" in tab.js(
            "document.getElementById('state').textContent"
        )


def test_more_images_than_are_shown_are_counted(tab, folder, images, tmp_path):
    page = shutil.copytree(folder, tmp_path / "page")
    script = (page / "page.js").read_text()
    assert "MAX_IMAGES = 200;" in script
    (page / "page.js").write_text(script.replace("MAX_IMAGES = 200;", "MAX_IMAGES = 3;"))
    with chromium.serve(page) as (url, _):
        tab.open(url)
        tab.choose("#files", images[:2])
        assert len(read_cards(tab)) == 2
        tab.choose("#files", images)
        assert [c["name"] for c in read_cards(tab)] == [p.name for p in images[:3]], "the newest"
        status = tab.js("document.getElementById('state').textContent")
        assert status == "3 images are done. 2 were left out: the limit is 3 at a time."


def test_a_convnet_has_a_page_without_maps(tab, convnet, convnet_folder, images):
    assert json.loads((convnet_folder / "model.json").read_text())["tokens"] == []
    with chromium.serve(convnet_folder) as (url, _):
        tab.open(url)
        tab.choose("#files", images[:1])
        (card,) = read_cards(tab)
        np.testing.assert_allclose(
            [p for _, p in card["best"]], np.sort(scores(convnet, images[0]))[::-1][:5], atol=1e-4
        )
        assert tab.js("document.querySelectorAll('.card canvas').length") == 1
        assert tab.js("document.getElementById('maps').hidden")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_is_readable_in_light_and_dark(dark, tab, folder, images):
    with chromium.serve(folder) as (url, _):
        tab.open(url, dark=dark)
        tab.choose("#files", images[:1])
        read_cards(tab)
        background, ink, faint = tab.js(
            "['.card backgroundColor', '.card color', '.card .quiet color'].map(s => { const p = s.split(' ');"
            "return getComputedStyle(document.querySelector(p.slice(0, -1).join(' ')))[p.at(-1)]; })"
        )
        assert (_luminance(background) < 0.2) == dark
        # WCAG 2.2, 1.4.3
        assert min(_contrast(background, ink), _contrast(background, faint)) >= 4.5


def _luminance(color: str) -> float:
    parts = [int(v) / 255 for v in color[4:-1].split(",")]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="module")
def several(model: LoadedModel) -> LoadedModel:
    """The model with three labels that every image has, and seven that none has."""
    thresholds = (0.0,) * 3 + (1.0,) * 7
    return LoadedModel(
        model.model,
        replace(
            model.model_config, task="multilabel", thresholds={model.model_config.head: thresholds}
        ),
    )


@pytest.fixture(scope="module")
def several_folder(runtime: None, several, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(several, tmp_path_factory.mktemp("web") / "several")


def test_of_several_labels_those_that_reach_their_threshold_are_marked(
    tab, several, several_folder, images
):
    with chromium.serve(several_folder) as (url, _):
        tab.open(url)
        tab.wait("document.body.dataset.state !== 'loading'")
        tab.choose("#files", images[:1])
        [card] = read_cards(tab)
        marked = tab.js(
            "[...document.querySelectorAll('[data-predicted=true]')].map(l => Number(l.dataset.index))"
        )
    probs = scores(several, images[0])
    assert sorted(marked) == [0, 1, 2]
    for index, probability in card["best"]:
        assert probability == pytest.approx(probs[index], abs=1e-4)
    assert card["text"].count("at least 0.0 %") == 3
    assert card["text"].count("below 100.0 %") == len(card["best"]) - 3
    assert tab.console_errors == []
