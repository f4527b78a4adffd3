"""The page is one file that asks for nothing, and no name in it can become anything but text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from deitctl.paths import DiskError
from deitctl.report import html
from deitctl.report.contents import Contents
from deitctl.report.html import build_payload, render_page, write_page

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "<img src=x onerror=alert(1)>",
    "a\u2028b\u2029c",
    "\"'&amp;",
    "\udc80\x00",
)


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._in = tag
        if tag in self.texts:
            self.texts[tag].append("")

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in in self.texts:
            self.texts[self._in][-1] += data


@pytest.fixture
def hostile(contents, evaluated) -> Contents:
    labels = np.array([0, 0, 1, 2, 3, 4, 5, 5])
    section = evaluated(
        data=HOSTILE[0],
        classes=HOSTILE,
        names=[HOSTILE[n % 6] for n in range(8)],
        labels=labels,
        name=HOSTILE[2],
        preds=[0, 1, 2, -1, 3, 4, 5, 0],
        outside={3: HOSTILE[0]},
        galleries={},
    )
    facts = tuple((name, name) for name in HOSTILE)
    return contents(section, title=HOSTILE[0], command=HOSTILE[0], created=HOSTILE[2], facts=facts)


def test_nothing_in_the_page_names_an_address_to_load_from(contents, distilled, curves):
    text = render_page(contents(distilled, curves=curves))
    elements = Elements(text)
    for tag, attributes in elements.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
        assert tag not in ("iframe", "object", "embed", "base", "link", "form")
    assert "url(" not in text
    assert "@import" not in text
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a namespace, never loaded


def test_the_policy_forbids_the_network_and_allows_this_script_and_style_alone(contents, evaluated):
    elements = Elements(render_page(contents(evaluated())))
    policy = next(
        a["content"]
        for t, a in elements.elements
        if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    style, script = elements.texts["style"][0], elements.texts["script"][1]
    digest = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    ]
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest[0]}'; script-src 'sha256-{digest[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert not any(
        name == "style" or name.startswith("on")
        for _, attributes in elements.elements
        for name in attributes
    )


def test_hostile_names_stay_text_wherever_they_stand(hostile):
    calm = replace(
        hostile, title="a", command="b", created="c", facts=tuple((str(n), "d") for n in range(6))
    )
    elements = Elements(render_page(hostile))
    assert [t for t, _ in elements.elements].count("script") == 2
    # not one element more
    assert [t for t, _ in elements.elements] == [t for t, _ in Elements(render_page(calm)).elements]
    assert json.loads(elements.texts["script"][0])["data"]["classes"] == list(HOSTILE)


def test_the_data_in_the_page_has_no_character_that_html_or_a_script_takes_for_its_own(hostile):
    data = Elements(render_page(hostile)).texts["script"][0]
    assert not set("<>&\u2028\u2029\x00") & set(data)


def test_names_that_are_no_text_do_not_stop_the_writing(hostile, tmp_path):
    write_page(hostile, tmp_path / "report.html")
    (tmp_path / "report.html").read_bytes().decode("utf-8")


def test_a_loss_that_was_not_finite_is_a_gap(contents, evaluated, curves):
    broken = replace(curves, steps=[{**curves.steps[0], "loss": float("nan")}, *curves.steps[1:]])
    data = Elements(render_page(contents(evaluated(loss=float("inf")), curves=broken))).texts[
        "script"
    ][0]
    assert json.loads(data)["curves"]["losses"]["loss"][0] is None


def test_every_link_in_the_page_leads_somewhere(contents, distilled, curves):
    elements = Elements(render_page(contents(distilled, curves=curves))).elements
    ids = [a["id"] for _, a in elements if a.get("id")]
    assert len(ids) == len(set(ids))
    assert {a["href"] for t, a in elements if t == "a"} <= {f"#{name}" for name in ids}


def test_a_plain_model_that_is_no_run_has_no_curves_and_no_disagreements(contents, evaluated):
    text = render_page(contents(evaluated()))
    assert 'id="curves"' not in text
    assert 'id="disagreements"' not in text


def test_an_image_that_two_galleries_show_is_in_the_file_once(contents, evaluated):
    mistakes = evaluated().galleries["mistakes"]
    once = evaluated(galleries={"mistakes": mistakes})
    twice = evaluated(galleries={"mistakes": mistakes, "unsure": mistakes})
    assert len(build_payload(contents(twice))["images"]) == 9
    assert len(build_payload(contents(once))["images"]) == 9


def test_evaluations_of_the_same_images_share_their_names(contents, evaluated):
    data = build_payload(contents(evaluated(), evaluated(name="another")))["data"]
    assert data["root"] == "/data/val/"
    assert data["names"][0] == "cat/0.jpg"


def test_of_a_few_images_all_are_listed_of_many_the_mistakes_the_most_confident_first(
    contents, evaluated, monkeypatch
):
    few = build_payload(contents(evaluated()))["models"][0]["listed"]
    assert sorted(few["index"]) == list(range(8))
    assert not few["mistakes_only"]
    monkeypatch.setattr(html, "MAX_LISTED", 7)
    many = build_payload(contents(evaluated()))["models"][0]["listed"]
    assert many["index"] == [5, 2, 4]  # 0.95, 0.8, 0.7
    assert many["mistakes_only"]
    monkeypatch.setattr(html, "MAX_LISTED_MISTAKES", 2)
    capped = build_payload(contents(evaluated()))["models"][0]["listed"]
    assert capped["index"] == [5, 2]


def test_a_thousand_classes_and_fifty_thousand_images_are_a_few_megabytes(contents, evaluated):
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(1000), 50)
    preds = np.where(draw.random(50_000) < 0.8, labels, draw.integers(0, 1000, 50_000))
    names = [
        f"/imagenet/val/n{label:08}/ILSVRC2012_val_{n:08}.JPEG" for n, label in enumerate(labels)
    ]
    big = evaluated(
        data="imagenet",
        classes=[f"class {n}" for n in range(1000)],
        names=names,
        labels=labels,
        preds=preds,
        confidences=draw.random(50_000),
        galleries={},
    )
    assert len(render_page(contents(big))) < 3e6


def test_a_long_run_is_thinned_and_reports_it(curves, contents, evaluated):
    long = replace(curves, steps=[{**curves.steps[0], "step": n} for n in range(2500)])
    drawn = build_payload(contents(evaluated(), curves=long))["curves"]
    assert (drawn["every"], len(drawn["at"])) == (3, 834)


def test_a_folder_that_cannot_be_written_is_reported_in_one_line(contents, evaluated, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"Cannot write .*report\.html"):
        write_page(contents(evaluated()), tmp_path / "file" / "report.html")
