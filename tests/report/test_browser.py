"""The report in a real browser: at phone and desktop width, light and dark, with the mouse and the keyboard."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from deitctl.report.contents import Contents
from deitctl.report.html import write_page

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
LONG = "a class whose name is longer than the window of a phone is wide, " * 3
HOSTILE = (
    "</script><script>window.harmed=1</script>",
    "<img src=x onerror=window.harmed=1>",
    LONG,
    "x" * 200,
    "\u202egnp.exe",
)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    with chromium.browser(tmp_path_factory.mktemp("chromium") / "profile") as tab:
        yield tab


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Contents], Path]:
    def write(contents: Contents) -> Path:
        write_page(contents, tmp_path / "report.html")
        return tmp_path / "report.html"

    return write


@pytest.fixture
def everything(written, contents, evaluated, distilled, curves, better) -> Path:
    """Two models, one of them distilled, and a run."""
    return written(contents(evaluated(), distilled, comparisons=[better], curves=curves))


@pytest.fixture
def forty(written, contents, evaluated) -> Path:
    """Forty classes of two images each; one image of 5 is predicted as 33, and both of 20 as 21."""
    labels = np.repeat(np.arange(40), 2)
    preds = labels.copy()
    preds[[10, 40, 41]] = 33, 21, 21
    section = evaluated(
        classes=[f"class {n}" for n in range(40)],
        names=[f"{n}.png" for n in range(80)],
        labels=labels,
        preds=preds,
        confidences=np.full(80, 0.8),
        galleries={},
    )
    return written(contents(section))


def visible_texts(tab, selector: str) -> list[str]:
    """The texts of all visible elements."""
    return tab.js(
        f"[...document.querySelectorAll({json.dumps(selector)})]"
        ".filter(e => e.checkVisibility()).map(e => e.textContent)"
    )


def assert_clean(tab, path: Path) -> None:
    """Nothing but the file itself was requested, and the console has no errors."""
    assert [r for r in tab.requests if not r.startswith("data:")] == [path.as_uri()]
    assert tab.console_errors == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_it_opens_offline_without_console_errors_and_no_wider_than_the_window(
    tab, everything, width, dark
):
    tab.open(everything, width=width, dark=dark)
    assert_clean(tab, everything)
    assert tab.js("document.documentElement.scrollWidth") <= width
    assert tab.js("[...document.images].every(i => i.hidden || (i.complete && i.naturalWidth > 0))")
    background, ink = tab.js(
        "['backgroundColor', 'color'].map(k => getComputedStyle(document.documentElement)[k])"
    )
    light = [sum(int(v) for v in color[4:-1].split(",")) > 384 for color in (background, ink)]
    assert light == [not dark, dark]
    sections = [
        "Confusion",
        "Classes",
        "Reliability",
        "Curves",
        "Most confident mistakes",
        "Least confident correct predictions",
        "Head disagreements",
    ]
    assert visible_texts(tab, "h2") == ["Summary", *sections]


@pytest.mark.parametrize("width", [390, 1440])
def test_hostile_and_long_names_neither_run_nor_widen_the_page(
    tab, written, contents, evaluated, width
):
    data = {
        "data": HOSTILE[3],
        "classes": HOSTILE,
        "names": [HOSTILE[n % 5] * 2 for n in range(8)],
    }
    section = evaluated(
        **data, name=HOSTILE[1], preds=[0, 1, 2, 3, 4, -1, 2, 0], outside={5: HOSTILE[0]}
    )
    path = written(
        contents(
            section,
            evaluated(**data, name=HOSTILE[3]),
            title=HOSTILE[3],
            command=HOSTILE[3],
            facts=((HOSTILE[0], HOSTILE[3]),),
        )
    )
    tab.open(path, width=width)
    for number in range(3):
        tab.click(".confusions a", number)
    assert_clean(tab, path)
    assert tab.js("window.harmed === undefined")
    assert tab.js("document.documentElement.scrollWidth") <= width
    assert HOSTILE[0] in visible_texts(tab, ".matrix tbody th")[0]


@pytest.mark.parametrize("width", [390, 1440])
def test_a_perfect_model_of_one_class_has_a_page_too(tab, written, contents, evaluated, width):
    section = evaluated(classes=["cat"], labels=[0, 0], preds=[0, 0], confidences=[0.9, 0.8])
    path = written(contents(section))
    tab.open(path, width=width)
    assert_clean(tab, path)
    assert "No mistakes." in visible_texts(tab, "#confusion .empty")
    assert visible_texts(tab, "#mistakes .empty") == ["No mistakes."]


def test_without_javascript_the_summary_is_there(tab, everything):
    tab.open(everything, scripts=False)
    tab.send("Emulation.setScriptExecutionDisabled", value=False)  # so that the page can be queried
    assert "62.5 %" in tab.js("document.getElementById('summary').innerText")
    assert "need JavaScript" in tab.js("document.querySelector('main').innerText")


def test_the_policy_keeps_an_injected_script_from_running(tab, everything):
    tab.open(everything)
    tab.js(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.harmed = 1'}))"
    )
    tab.js("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x.png'}))")
    tab.js("void fetch('http://127.0.0.1:9/').catch(() => { window.refused = true; })")
    tab.wait("window.refused")
    assert tab.js("window.harmed === undefined")
    assert [r for r in tab.requests if r.startswith("http")] == ["http://127.0.0.1:9/x.png"]
    assert tab.blocked == ["csp"]  # requested by the page, and never sent


@pytest.mark.parametrize("width", [390, 1440])
def test_a_click_on_a_link_of_the_page_goes_to_its_section(tab, everything, width):
    tab.open(everything, width=width)
    for number, target in enumerate(visible_texts(tab, "nav a")):
        tab.click("nav a", number)
        tab.wait(f"location.hash === document.querySelectorAll('nav a')[{number}].hash")
        heading = "document.querySelector(location.hash + ' h2')"
        assert tab.js(f"{heading}.textContent") == target
        box = f"{heading}.getBoundingClientRect()"
        # seen, not below the bar
        tab.wait(f"document.elementFromPoint({box}.x + 2, {box}.y + 4) === {heading}")


def test_every_link_of_the_page_leads_to_what_is_there(tab, everything):
    tab.open(everything)
    targets = tab.js("[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))")
    assert len(targets) > 9
    assert all(
        target.startswith("#") and tab.js(f"Boolean(document.querySelector('{target}'))")
        for target in targets
    )


def test_a_click_on_a_number_lists_exactly_its_images(tab, everything):
    tab.open(everything)
    tab.click('.matrix [data-key="0/1"]')  # the cat that is predicted as a dog
    assert visible_texts(tab, "#cell h3") == ["1 image: cat predicted as dog"]
    assert visible_texts(tab, "#cell code") == ["cat/2.jpg"]
    tab.click('.matrix [data-key="0/0"]')
    assert visible_texts(tab, "#cell code") == ["cat/0.jpg", "cat/1.jpg"]
    tab.click('.matrix [data-key="1/-1"]')
    assert visible_texts(tab, "#cell code") == ["dog/5.jpg"]
    assert "predicted as fox, 95.0 %" in visible_texts(tab, "#cell li")[0]
    assert tab.js("document.querySelector('#cell img').naturalWidth") == 32  # its thumbnail
    assert visible_texts(tab, ".matrix .selected") == ["1"]


def test_a_click_on_a_class_lists_its_mistakes_or_what_is_wrongly_predicted_as_it(tab, everything):
    tab.open(everything)
    tab.click('.matrix tbody th [data-key="1/"]')
    assert visible_texts(tab, "#cell code") == ["dog/5.jpg", "dog/4.jpg"]
    tab.click('.matrix thead [data-key="/1"]')
    assert visible_texts(tab, "#cell code") == ["cat/2.jpg"]


def test_the_list_of_confusions_leads_to_their_images(tab, everything):
    tab.open(everything)
    assert visible_texts(tab, ".confusions a") == [
        "cat predicted as dog",
        "dog predicted as cat",
        "dog predicted as fox",
    ]
    tab.click(".confusions a", 2)
    assert visible_texts(tab, "#cell code") == ["dog/5.jpg"]
    assert tab.js("location.hash") == "#cell"


def test_predictions_outside_the_data_are_distinguished_by_their_titles(
    tab, written, contents, evaluated
):
    section = evaluated(preds=[-1, 0, 1, -1, 0, -1, 2, 2], outside={0: "lion", 3: "fox", 5: "wolf"})
    tab.open(written(contents(section)))
    number = visible_texts(tab, ".confusions a").index("dog predicted as wolf")
    tab.click(".confusions a", number)
    assert visible_texts(tab, "#cell h3") == ["1 image: dog predicted as wolf"]
    assert visible_texts(tab, "#cell code") == ["dog/5.jpg"]
    tab.click('.matrix [data-key="1/-1"]')  # the same cell, all of it
    assert visible_texts(tab, "#cell code") == ["dog/5.jpg", "dog/3.jpg"]


def test_the_matrix_is_navigated_with_the_keyboard(tab, everything):
    tab.open(everything)
    tab.js("[...document.querySelectorAll('#confusion .choice button')].at(-1).focus()")
    tab.press("Tab")
    tab.press("ArrowRight")  # from the class to its first number
    tab.press("ArrowRight")
    assert tab.js("document.activeElement.dataset.key") == "0/1"
    assert tab.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.press("Enter")
    assert visible_texts(tab, "#cell code") == ["cat/2.jpg"]
    tab.press("ArrowDown")
    assert tab.js("document.activeElement.dataset.key") == "1/1"
    assert tab.js("document.querySelectorAll('.matrix [tabindex=\"0\"]').length") == 1


@pytest.mark.parametrize(
    ("order", "classes"),
    [
        ("confused", ["cat", "dog", "owl"]),
        ("accuracy", ["dog", "cat", "owl"]),
        ("data", ["cat", "dog", "owl"]),
    ],
)
def test_the_matrix_is_sorted(tab, everything, order, classes):
    tab.open(everything)
    tab.click('#confusion button[value="name"]')
    tab.click(f'#confusion button[value="{order}"]')
    assert visible_texts(tab, ".matrix tbody th") == classes
    assert visible_texts(tab, ".matrix thead th")[1:4] == classes
    assert visible_texts(tab, '#confusion [aria-pressed="true"]') == [
        {"confused": "most confused"}.get(order, order)
    ]


def test_of_many_classes_a_window_is_shown_the_most_confused_first(tab, forty):
    tab.open(forty)
    assert visible_texts(tab, ".matrix tbody th") == [f"class {n}" for n in range(20)]
    tab.click('#confusion button[value="confused"]')
    assert visible_texts(tab, ".matrix tbody th")[:4] == [
        "class 20",
        "class 21",
        "class 5",
        "class 33",
    ]
    tab.click('#confusion button[value="data"]')
    for _ in range(3):  # there are no more than two parts
        tab.click("#confusion .choice:nth-child(2) button", 1)
    assert visible_texts(tab, ".matrix tbody th") == [f"class {n}" for n in range(20, 40)]
    assert "classes 21 to 40 of 40" in visible_texts(tab, "#confusion .choice")[1]


def test_classes_that_are_not_shown_are_counted_in_a_column_of_their_own(tab, forty):
    tab.open(forty)
    tab.click('.matrix [data-key="5/-2"]')  # 33 is not among the first twenty
    assert visible_texts(tab, "#cell code") == ["10.png"]


def test_the_overview_and_the_classes_lead_to_a_matrix_around_them(tab, forty):
    tab.open(forty)
    tab.click("#classes .link")  # the one with the lowest recall
    assert visible_texts(tab, ".matrix tbody th") == ["class 20", "class 21"]
    assert visible_texts(tab, "#cell code") == ["40.png", "41.png"]
    tab.click(".overview canvas")  # its middle, nearest to 20, 21
    assert visible_texts(tab, "#cell h3") == ["2 images: class 20 predicted as class 21"]
    drawn = "document.querySelector('canvas').getContext('2d').getImageData({0} * 16 + 8, {1} * 16 + 8, 1, 1).data[0]"
    tab.click('#confusion button[value="data"]')
    assert tab.js(drawn.format(21, 20)) > 100  # orange
    assert tab.js(drawn.format(3, 3)) < 100  # blue


def test_the_classes_are_sorted_by_each_column_and_back(tab, everything):
    tab.open(everything)
    heads = ["class", "recall", "precision", "F1", "images"]
    assert visible_texts(tab, "#classes thead button") == heads
    assert visible_texts(tab, "#classes tbody tr")[:2] == [
        "dog33.3 %50.0 %40.0 %3",
        "cat66.7 %66.7 %66.7 %3",
    ]  # by recall
    worst, named = ["dog", "cat", "owl"], ["cat", "dog", "owl"]
    for number, classes in enumerate((named, worst, worst, worst, named)):
        tab.click("#classes thead button", number)
        assert visible_texts(tab, "#classes tbody th") == classes, heads[number]
    tab.click("#classes thead button", 2)
    tab.click("#classes thead button", 2)
    assert visible_texts(tab, "#classes tbody th") == ["owl", "cat", "dog"]
    assert tab.js("document.querySelectorAll('#classes [aria-sort=\"descending\"]').length") == 1
    assert visible_texts(tab, "#classes tbody tr")[0].endswith("100.0 %100.0 %100.0 %2")


def test_the_classes_are_filtered_by_a_part_of_their_name(tab, forty):
    tab.open(forty)
    tab.click("#classes input")
    tab.send("Input.insertText", text="SS 3")
    assert visible_texts(tab, "#classes tbody th") == [f"class {n}" for n in (3, *range(30, 40))]
    assert visible_texts(tab, "#classes [role=status]") == ["11 of 40 classes"]


def test_another_model_is_shown_when_it_is_chosen(tab, everything):
    tab.open(everything)
    assert tab.js("document.querySelectorAll('.matrix [data-key=\"0/1\"]').length") == 1
    tab.click("#models button", 1)
    assert visible_texts(tab, '#models [aria-pressed="true"]') == ["distilled"]
    assert visible_texts(tab, ".confusions a") == ["dog predicted as cat"]
    assert visible_texts(tab, "#disagreements .guess") == [
        "class head✓ cat",
        "distillation headdog",
    ]
    assert len(visible_texts(tab, "#confusion h3")) == 1  # drawn again, not once more
    tab.click("#models button", 0)
    assert len(visible_texts(tab, ".confusions a")) == 3


def test_the_reliability_diagram_switches_to_the_fitted_temperature(tab, everything):
    tab.open(everything)
    tab.click("#models button", 1)
    assert "Expected calibration error 0.125" in visible_texts(tab, "#reliability .verdict")[0]
    assert visible_texts(tab, "#reliability tbody tr") == [
        "50 to 75 %458.8 %100.0 %",
        "75 to 100 %491.0 %75.0 %",
    ]
    tab.click('#reliability button[value="fitted"]')
    assert visible_texts(tab, "#reliability .verdict")[0].startswith(
        "Expected calibration error 0.063. Mean confidence 80.0 %"
    )
    assert visible_texts(tab, "#reliability tbody tr") == ["50 to 100 %880.0 %87.5 %"]
    assert tab.js("document.querySelectorAll('#reliability svg title').length") == 1


def test_the_curves_show_their_values_under_the_pointer_and_with_the_arrow_keys(tab, everything):
    tab.open(everything)
    assert visible_texts(tab, "#curves h3") == ["Loss", "Validation top-1, %", "Learning rate"]
    assert visible_texts(tab, "#curves .chart:nth-child(2) .legend li") == [
        "class head",
        "distillation head",
        "teacher",
    ]
    tab.js("document.querySelectorAll('#curves figure > svg')[1].focus()")
    tab.press("ArrowRight")
    tab.press("ArrowRight")
    assert (
        visible_texts(tab, "#curves output")[1]
        == "epoch 2: class head 60 %, distillation head 58 %, teacher 95 %"
    )
    tab.click("#curves figure > svg", 2)
    assert visible_texts(tab, "#curves output")[2].startswith("epoch 1: learning rate 7.0e-4")


def test_the_attention_maps_are_laid_over_all_images_or_one(tab, everything):
    tab.open(everything)
    overlays = "[...document.querySelectorAll('#mistakes .map')].map(i => i.hidden ? '' : i.alt)"
    assert tab.js(overlays) == ["", "", ""]
    tab.click('#mistakes button[value="distillation token"]')
    assert tab.js(overlays) == ["attention of the distillation token"] * 3
    tab.wait("document.querySelector('#mistakes .map').naturalWidth === 32")
    tab.click("#mistakes .image", 1)
    assert tab.js(overlays)[1] == ""
    tab.click("#mistakes .image", 1)
    assert tab.js(overlays)[1] == "attention of the class token"
    one, other = tab.js("[0, 1].map(n => document.querySelectorAll('#mistakes .map')[n].src)")
    assert one != other


def test_every_image_has_a_text_of_its_own(tab, everything):
    tab.open(everything)
    texts = tab.js(
        "[...document.querySelectorAll('.gallery .image > img:first-child')].map(i => i.alt)"
    )
    assert texts[0] == "dog/5.jpg, labeled dog"
    assert all(texts)


def test_light_and_dark_can_be_changed_by_hand(tab, everything):
    tab.open(everything)
    before = tab.js("getComputedStyle(document.body).color")
    tab.click("#theme")
    assert tab.js("getComputedStyle(document.body).color") != before
    tab.click("#theme")
    assert tab.js("getComputedStyle(document.body).color") == before
