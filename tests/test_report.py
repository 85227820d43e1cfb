"""The report: its figures, what it escapes, odd data sets, and how a browser shows it."""

import html
import importlib.util
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from drnet_jax.checkpoints.checkpoint import CheckpointError
from drnet_jax.config import ConfigError, flatten
from drnet_jax.data.folder import FileReader
from drnet_jax.data.sources import ArraySource, EncodedSource
from drnet_jax.evaluate import evaluation
from drnet_jax.evaluation.logits import Logits
from drnet_jax.evaluation.metrics import EvalRecords
from drnet_jax.models.layers import resize
from drnet_jax.report import compare_runs, group
from drnet_jax.reports.cards import CardMaker, hardest
from drnet_jax.reports.comparison import same_images
from drnet_jax.reports.comparison_warnings import warnings
from drnet_jax.reports.evaluation_report import pictures, write_report
from drnet_jax.runtime.environment import environment
from drnet_jax.runtime.files import write_json
from tests.small_run import small_config
from tests.synthetic import synthetic_logits, synthetic_model

EVIL = "<script>alert('x')</script>&\"$\\frac$ 猫"


def pixels(_: int, resolution: int) -> np.ndarray:
    return np.full((resolution, resolution, 3), 100, np.uint8)


def write(
    workdir: Path,
    outputs: Logits,
    classes: tuple[str, ...],
    *,
    seed: int = 0,
    stage: str = "joint",
    controls: bool = True,
    **fields: Any,
) -> str:
    """Writes report and `eval.json` of these outputs; the page."""
    config = small_config(**{"seed": seed, "eval.gallery": 4, **fields})
    trained = synthetic_model(config, classes, workdir, stage)
    records = outputs.records()
    summary = evaluation(trained, records, records if controls else None, 0.0, None)
    summary |= {"split": "test", "stage": stage, "config": trained.config, "num_corrupt": 0}
    summary["environment"] = environment("python main.py --x='<b>'")
    write_json(workdir / "eval.json", summary)
    path = workdir / "report.html"
    write_report(path, summary, trained, outputs, records, pixels, gallery=config.eval.gallery)
    return path.read_text()


def classes_of(count: int) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(count))


class Balanced(HTMLParser):
    """Fails where an element is not closed, or closed twice."""

    VOID = {"meta", "img", "br", "path", "use", "rect"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def check(page: str) -> None:
    """Sound, and nothing from elsewhere."""
    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "nan" not in re.sub(r'="[^"]*"', "", page).lower()


def test_figures_of_the_page(tmp_path: Path) -> None:
    outputs = synthetic_logits(300, 2, 10)
    line = {"stage": "pretrain", "step": 1, "epoch": 0.5, "loss": 2.0, "accuracy": 0.3}
    joint = {"stage": "joint", "shares": [0.5, 0.5], "gmacs_argmax": 1.0, "gmacs_sampled": 1.1}
    lines = [json.dumps(entry) for entry in (line, line | joint)]
    # The last line was being written when the run was killed.
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, lines[0][:20]]))
    page = write(tmp_path, outputs, classes_of(10))
    check(page)
    records = outputs.records()
    correct = outputs.logits.argmax(2) == outputs.label[:, None]
    chosen = correct[np.arange(300), outputs.scores.argmax(1)]
    assert f"<dd>{100 * chosen.mean():.2f} %</dd>" in page
    assert f"<td>{100 * correct[:, 1].mean():.2f} " in page
    rows = page[page.index('class="classes"') :]
    listed = [int(k) for k in re.findall(r"<tr><th>class (\d+)</th>", rows)]
    accuracies = [chosen[outputs.label == k].mean() for k in listed]
    assert sorted(listed) == list(range(10)) and accuracies == sorted(accuracies)
    assert page.count("<figure") == 4 + 4 + len(hardest(records, 4))
    assert page.count("<svg") == 4


def test_cards_say_what_every_resolution_says() -> None:
    outputs = synthetic_logits(40, 2, 3)
    records = outputs.records()
    maker = CardMaker(outputs, records, (32, 16), classes_of(3), pixels)
    for row, card in enumerate(maker.cards(range(40))):
        p = np.exp(outputs.logits[row]) / np.exp(outputs.logits[row]).sum(1, keepdims=True)
        chosen = outputs.scores[row].argmax()
        assert card.label == f"class {outputs.label[row]}" and card.name == f"image {row}"
        assert card.chosen.resolution == (32, 16)[chosen]
        (other,) = card.others
        assert other.resolution == (32, 16)[1 - chosen]
        assert other.label == f"class {p[1 - chosen].argmax()}"
        assert other.confidence == pytest.approx(p[1 - chosen].max(), rel=1e-5)
    sections = maker.sections(5)
    assert sum(section.count for section in sections) == 40
    assert [len(section.cards) for section in sections] == [5, 5]


def test_cards_of_a_first_look() -> None:
    """A second look's answer has the first look's logits added, and what that one said beside."""
    weight = np.array([0.5, 2.0, 0.0], np.float32)
    outputs = replace(synthetic_logits(60, 3, 4), weight=weight)
    records, sizes = outputs.records(), (64, 32, 16)
    maker = CardMaker(outputs, records, sizes, classes_of(4), pixels, glances=True)
    for row, card in enumerate(maker.cards(range(60))):
        z, choice = outputs.logits[row], int(outputs.scores[row].argmax())
        answer = z[choice] + (0.5, 2.0, 0.0)[choice] * z[2]
        assert card.chosen.label == f"class {answer.argmax()}"
        assert card.chosen.confidence == pytest.approx(softmax(answer).max(), rel=1e-5)
        others = [size for size in sizes[:2] if size != sizes[choice]]
        assert [said.resolution for said in card.others] == others
        if choice == 2:
            assert card.first is None
            continue
        assert card.first is not None and card.first.resolution == 16
        assert card.first.label == f"class {z[2].argmax()}"
        assert card.first.correct == (z[2].argmax() == outputs.label[row])


def test_a_page_of_a_first_look_says_what_it_is(tmp_path: Path) -> None:
    fields = {"predictor.kind": "glance", "model.reuse": "logits"}
    outputs = replace(synthetic_logits(80, 2, 3), weight=np.array([0.5, 0.0], np.float32))
    page = write(tmp_path, outputs, classes_of(3), **fields)
    check(page)
    words = html.unescape(page)
    assert "Every image is classified at 16 px first" in words
    assert "the first's added, times 0.50 at 32 px." in words
    sent = int((outputs.scores.argmax(1) == 0).sum())
    assert sent >= 4 and page.count(">first look</span>") >= 4
    summary = json.loads((tmp_path / "eval.json").read_text())
    controls = summary["controls"]
    for name in ("margin_cascade", "cascade", "hull", "32 px"):
        gain = controls["intervals"][f"drnet - {name}"]
        assert f"{100 * gain['value']:+.2f} <span" in page
    for name in ("drnet", "cascade", "margin_cascade"):
        gmacs = controls["as_good_as_largest"][name]["gmacs"]
        cost = "at no setting" if gmacs is None else f"{gmacs / summary['fixed'][0]['gmacs']:.2f}"
        assert cost in page
    assert controls["verdict"] in page
    # Of all images at each choice, with the first look's logits.
    z, label = outputs.logits, outputs.label
    expected = [((z[:, 0] + 0.5 * z[:, 1]).argmax(1) == label).mean()]
    expected += [(z[:, 1].argmax(1) == label).mean()]
    assert summary["choice_top1"] == pytest.approx(expected)
    page = write(tmp_path, outputs, classes_of(3))
    assert "first look" not in re.sub("<svg.*?</svg>", "", page, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("/data/a/1.png", "/data/b/2.png"), ["a/1.png", "b/2.png"]),
        (("/data/a/1.png", "/data/a/2.png"), ["1.png", "2.png"]),
        (("image 0", "image 1"), ["image 0", "image 1"]),
    ],
)
def test_cards_leave_out_the_folder_that_all_are_in(
    names: tuple[str, ...], expected: list[str]
) -> None:
    outputs = replace(synthetic_logits(2, 2, 3), name=np.array(names))
    maker = CardMaker(outputs, outputs.records(), (32, 16), classes_of(3), pixels)
    assert [card.name for card in maker.cards([0, 1])] == expected


def test_hardest_disagreements() -> None:
    """Image 0 is correct; 1 and 2 are correct elsewhere only, 2 surer; 3 is correct nowhere.

    What counts is the answer: the first look's logits mend that of 0.
    """
    top1 = np.array([[1, 0], [0, 1], [0, 1], [0, 0]], bool)
    alone = top1 ^ np.array([[1, 1], [0, 0], [0, 0], [0, 0]], bool)
    confidence = np.array([[0.9, 0.9], [0.5, 0.5], [0.9, 0.8], [1.0, 1.0]])
    zeros, none = np.zeros((4, 2)), np.zeros(4, int)
    records = EvalRecords(
        ce=zeros,
        top1=alone,
        answer_top1=top1,
        answer_top5=top1,
        choice=none,
        scores=zeros,
        confidence=confidence,
        margin=zeros,
        index=np.arange(4),
        label=none,
    )
    assert hardest(records, 5).tolist() == [2, 1]
    assert hardest(records, 1).tolist() == [2]


def test_names_are_escaped(tmp_path: Path) -> None:
    outputs = synthetic_logits(30, 2, 3)
    names = np.array([f"{EVIL}/{index}.jpg" for index in range(30)])
    evil = replace(outputs, name=names)
    page = write(tmp_path, evil, (EVIL, "two", "three"))
    check(page)
    assert "<script" not in page and "&lt;script&gt;" in page and "猫" in page


@pytest.mark.parametrize(("count", "classes"), [(3, 3), (20, 1), (3000, 1000), (1, 2)], ids=str)
def test_odd_data_sets(count: int, classes: int, tmp_path: Path) -> None:
    check(write(tmp_path, synthetic_logits(count, 2, classes), classes_of(classes)))


def test_without_controls_or_predictor(tmp_path: Path) -> None:
    outputs = synthetic_logits(30, 2, 3)
    page = write(tmp_path, outputs, classes_of(3), controls=False)
    check(page)
    assert "hull of the fixed sizes" in page and "oracle" not in page
    page = write(tmp_path, outputs, classes_of(3), stage="pretrain")
    check(page)
    assert "No predictor is trained yet" in page and "<figure" not in page
    one = {"model.resolutions": (32,)}
    page = write(tmp_path, synthetic_logits(30, 1, 3), classes_of(3), controls=False, **one)
    check(page)
    assert "Chosen" not in page and "DRNet" not in page


def test_agreement_is_not_called_accuracy(tmp_path: Path) -> None:
    """Whether or not `conversion.json` is there; runs of other weights are not compared."""
    outputs, said = synthetic_logits(30, 2, 3), "px, right or wrong, no accuracy"
    for name in ("a", "b"):
        fields = {"convert.labels": False, "convert.weights": name}
        assert f"imported network at 32 {said}" in write(
            tmp_path / name, outputs, classes_of(3), **fields
        )
    assert said not in write(tmp_path / "c", outputs, classes_of(3), seed=1)
    first, *others = compare_runs(
        small_config(**{"report.runs": tuple(str(tmp_path / name) for name in "abc")}),
        tmp_path / "out",
    )
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "2 of the 3 runs are of pictures without labels" in page
    # The same images, and other labels.
    assert [same_images(first, other) for other in (first, *others)] == [True, False, False]
    assert "<h2>Top-1 over cost</h2>" in page


def test_pictures_are_what_the_network_sees(tmp_path: Path) -> None:
    """But for a resize on the host; one that cannot be read any more is left out."""
    image = np.random.default_rng(0).integers(256, size=(32, 48, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    reader, labels = FileReader((tmp_path / "a.png",)), np.zeros(1, np.int32)
    source = EncodedSource(reader, np.zeros(1, int), labels, "all", 32, (0.1, 1.0), 1.0)
    np.testing.assert_array_equal(pictures(source)(0, 32), image[:, 8:40])
    small = pictures(source)(0, 16)
    assert small is not None
    expected = resize(jnp.asarray(image[None, :, 8:40], jnp.float32), 16)[0]
    assert np.abs(small - expected).max() <= 1
    memory = ArraySource(image[None, :, 8:40], labels, "all")
    np.testing.assert_array_equal(pictures(memory)(0, 16), small)
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert pictures(source)(0, 32) is None
    outputs = synthetic_logits(3, 2, 3)
    maker = CardMaker(outputs, outputs.records(), (32, 16), classes_of(3), lambda *_: None)
    assert maker.cards([0, 1]) == []


def test_comparison_page(tmp_path: Path) -> None:
    for eta, seed in ((0.1, 0), (0.1, 1), (0.5, 0)):
        outputs = synthetic_logits(100, 2, 3, seed=10 * seed + int(10 * eta))
        fields = {"joint.eta": eta}
        write(tmp_path / f"{eta}_{seed}", outputs, classes_of(3), seed=seed, **fields)
    runs = tuple(str(tmp_path / name) for name in ("0.1_0", "0.1_1", "0.5_0"))
    found = compare_runs(small_config(**{"report.runs": runs}), tmp_path / "out")
    assert [(setting.name, setting.seeds) for setting in found] == [
        ("joint.eta=0.1", [0, 1]),
        ("joint.eta=0.5", [0]),
    ]
    page = (tmp_path / "out" / "comparison.html").read_text()
    check(page)
    assert page.count("<tr>") == 2 + 2 + 3 and "joint.eta=0.5" in page


def test_comparison_refuses_what_it_cannot_compare(tmp_path: Path) -> None:
    outputs = synthetic_logits(30, 2, 3)
    write(tmp_path / "a", outputs, classes_of(3))
    write(tmp_path / "same", outputs, classes_of(3))
    write(tmp_path / "early", outputs, classes_of(3), stage="pretrain")
    for runs, error, words in (
        ((), ConfigError, "report.runs is empty"),
        (("a", "none"), CheckpointError, "which has no eval.json: run --mode=eval"),
        (("a", "early"), CheckpointError, "has no trained predictor"),
        (("a", "same"), ConfigError, r"twice at seeds \[0, 0\]"),
    ):
        paths = tuple(str(tmp_path / run) for run in runs)
        with pytest.raises(error, match=words):
            compare_runs(small_config(**{"report.runs": paths}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "other",
    [
        {"split": "calibration"},
        # Of two stages at once too, but not of either of the two.
        {"stage": "single"},
        {"num_images": 29},
        {"identities": {"test": "b"}},
        {"config": {"data.eval_images": 29}},
        {"config": {"budget.gmacs": 1.0}},
    ],
    ids=str,
)
def test_runs_on_other_images_are_another_setting(other: dict[str, Any]) -> None:
    first = {"split": "test", "num_images": 30, "identities": {"test": "a"}}
    first |= {"config": flatten(small_config())}
    second = first | {"config": first["config"] | {"seed": 1}}
    third = second | other | {"config": second["config"] | other.get("config", {})}
    assert [s.seeds for s in group({Path("a"): first, Path("b"): second})] == [[0, 1]]
    found = group({Path("a"): first, Path("b"): third})
    assert [s.seeds for s in found] == [[0], [1]]
    assert len({s.name for s in found}) == 2


def test_stage_one_from_another_run_is_another_setting_than_from_random_weights() -> None:
    """Whichever run it is: every seed may have its own."""
    summary = {"split": "test", "num_images": 30, "identities": {"test": "a"}}
    configs = [
        small_config(seed=seed, **{"pretrain.init_from": origin and f"{origin}{seed}"})
        for origin in ("", "runs/seed")
        for seed in (0, 1)
    ]
    summaries = {Path(str(n)): summary | {"config": flatten(c)} for n, c in enumerate(configs)}
    found = group(summaries)
    assert [s.seeds for s in found] == [[0, 1], [0, 1]]
    assert [s.name.rsplit("=", 1)[1] for s in found] == ["False", "True"]


def test_where_the_images_are_counts_only_if_nothing_tells_which_they_are() -> None:
    def settings_of_moved_data(further: dict[str, Any]) -> list[list[int]]:
        """Two seeds, the second with its data in another directory."""
        summaries = {}
        for seed, place in enumerate(("here", "there")):
            config = flatten(small_config(**{"data.name": "folder", "data.dir": place}))
            summary = {"split": "test", "num_images": 30, "config": config | {"seed": seed}}
            summaries[Path(place)] = summary | further
        return [setting.seeds for setting in group(summaries)]

    assert settings_of_moved_data({"identities": {"test": "a"}}) == [[0, 1]]
    assert settings_of_moved_data({}) == [[0], [1]]


def test_differing_evaluations_are_said() -> None:
    one = {"split": "test", "num_images": 5, "lambda": 0.0, "stage": "joint", "config": {}}
    assert warnings([one, one]) == []
    (found,) = warnings([one, one | {"lambda": 2.0}])
    assert "lambda: 0.0, 2.0" in found


def _browser() -> str | None:
    if importlib.util.find_spec("playwright") is None:
        return None
    return shutil.which("chromium") or shutil.which("chromium-browser")


# A browser is 300 MB that nothing else here needs, and no part of the extra `dev`. What can be
# checked without one (markup, escaping, nothing from elsewhere) is checked by `check`.
@pytest.mark.skipif(
    _browser() is None,
    reason="layout, console and requests are not checked: needs Chromium on the PATH and "
    "`pip install playwright`",
)
def test_in_a_browser(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    names = (EVIL, "n" * 60, *classes_of(8))
    write(tmp_path, synthetic_logits(300, 2, 10), names)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=_browser(), args=["--no-sandbox"], timeout=60_000
        )
        for width in (375, 1440):
            page = browser.new_page(viewport={"width": width, "height": 900})
            problems: list[str] = []
            requests: list[str] = []
            page.on("console", lambda message, to=problems: to.append(message.text))
            page.on("pageerror", lambda error, to=problems: to.append(str(error)))
            page.on("request", lambda request, to=requests: to.append(request.url))
            page.goto(f"file://{tmp_path / 'report.html'}")
            loaded = page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth)")
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert not problems and wide <= width
            assert loaded and all(loaded)
            assert [url for url in requests if not url.startswith("data:")] == [page.url]
        browser.close()
