"""The report reads folders only, is the same to the byte, needs no script, and shows hostile text as text."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from uq4ct import predictions
from uq4ct.errors import UserError
from uq4ct.manifest import write_json, write_manifest
from uq4ct.metrics import summarize
from uq4ct.posthoc.abstain import AbstainRule
from uq4ct.report import build_report, table

TASKS = {"tiny": 0.0, "tiny-near": 0.06, "tiny-far": 0.16, "tiny-unanswerable": 0.45}
METHODS = {"zero_shot": (0.09, 1.3), "lora": (0.0, 2.1), "mixlora": (0.01, 1.9), "uq4ct": (0.0, 1.35)}
STRATA = {"often": 1.0, "rare": 0.6, "contradicted": 0.35}
PAYLOAD = "<script>alert(1)</script><img src=x onerror=alert(2)> $\\frac{1}{2}$ \"'&"


def made_rows(n: int, shift: float, weakness: float, sharpness: float, feu: bool, method: str) -> list[dict]:
    """Answer questions whose true probabilities are known: sharpness above 1 is overconfidence."""
    generator = np.random.default_rng(int(100 * shift) + 1)
    rows = []
    for number in range(n):
        k = int(generator.integers(3, 6))
        stratum = list(STRATA)[int(generator.integers(3))] if shift < 0.4 else "never"
        strength = STRATA.get(stratum, 0.0) * 4.5 * (1 - shift)
        truth = np.exp(strength * (np.arange(k) == generator.integers(k)) + 0.3 * generator.normal(size=k))
        truth /= truth.sum()
        gold = int(generator.choice(k, p=truth))
        belief = np.log(truth) * (1 - 3 * weakness) + generator.normal(size=k) * (0.5 + 2 * shift)
        logits = sharpness * belief
        p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        labels, best = [chr(65 + j) for j in range(k)], int(p.argmax())
        known = float(np.clip(0.35 + 0.4 * truth.max() + 0.06 * generator.normal(), 0.25, 1))
        rows.append(
            {
                "id": f"q{number}",
                "question": f"Where does the traveller from town {number} buy lamp oil?",
                "choices": [f"at market {j}" for j in range(k)],
                "prediction": labels[best],
                "confidence": float(p[best]),
                "probabilities": dict(zip(labels, p.tolist(), strict=True)),
                "feu": known if feu else None,
                "uncertainty": {"total": 0.5, "aleatoric": 0.5, "epistemic": 0.0},
                "label": labels[gold],
                "correct": best == gold,
                "abstained": method == "uq4ct" and float(p[best]) < 0.7,
                "logits": logits.tolist(),
                "stratum": stratum,
                "true_probabilities": truth.tolist(),
                "method": method,
                "seed": 1,
            }
        )
    return rows


def make_run(folder: Path, method: str, n: int, tasks: dict[str, float] = TASKS, resamples: int = 100) -> Path:
    weakness, sharpness = METHODS.get(method, (0.0, 1.5))
    router = method in ("mixlora", "uq4ct")
    for task, shift in tasks.items():
        place = folder / "evaluations" / task.replace("/", "_")
        place.mkdir(parents=True)
        rows = made_rows(n, shift, weakness, sharpness, router, method)
        predictions.write(place / "predictions.jsonl", rows)
        metrics = {"task": task, "split": "test", "method": method, "seed": 1, **summarize(rows, resamples=resamples)}
        metrics["data"] = {"path": f"{task}.jsonl", "sha256": "5d41402abc4b2a76b9719d911017c592"}
        write_json(place / "metrics.json", metrics)
        write_manifest(place)
    facts = {"method": method, "seed": 1, "task": "tiny", "n": 540, "passes": 1, "seconds": 47.3, "notes": ["a note"]}
    facts |= {
        "trainable_parameters": 123456,
        "base": {"name": "tiny", "dtype": "float32"},
        "prompt": {"hash": "3f2a9c"},
    }
    write_json(folder / "uq4ct.json", facts)
    write_json(folder / "environment.json", {"uq4ct": "0.1.0", "device": "cpu", "packages": {"torch": "2.13"}})
    if method == "uq4ct":
        AbstainRule(0.7, 0.85, 0.95, n=60, kept=40, accuracy=0.9).save(folder / "abstain.json")
    generator = np.random.default_rng(5)
    log = []
    for step in range(10, 210, 10):
        entry = {
            "step": step,
            "ce": 1.2 * np.exp(-step / 90) + 0.05 * generator.random(),
            "accuracy": 1 - 0.6 * np.exp(-step / 70),
        }
        if router:
            entry |= {"feu": 0.3 + step / 600, "calibration": 0.3 * np.exp(-step / 120), "expert_load_entropy": 0.95}
        log.append(entry)
    if router:
        log[-1]["expert_load"] = generator.dirichlet(np.full(8, 6.0), size=4).round(4).tolist()
    (folder / "training_log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    write_manifest(folder, ["uq4ct.json", "environment.json", "training_log.jsonl"])
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    tasks = {"tiny": 0.0, "tiny-far": 0.16}
    return [make_run(root / method, method, 80, tasks) for method in ("lora", "uq4ct")]


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("report") / "report.html"
    build_report(runs, output)
    return output.read_text(encoding="utf-8")


class Elements(html.parser.HTMLParser):
    """Collect tags, attributes and visible text, and check that tags close in order."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_a_report_has_every_section_and_figure_of_its_runs(page: str) -> None:
    elements = Elements(page)
    ids = [value for tag, name, value in elements.attributes if tag == "section" and name == "id"]
    assert ids == [
        *("verdict", "reliability", "risk", "spread", "feu", "truth", "abstaining", "mistakes"),
        *("training", "cost", "provenance"),
    ]
    targets = {value[1:] for tag, name, value in elements.attributes if tag == "a" and name == "href"}
    assert targets == set(ids)
    text = " ".join(elements.text)
    for words in (
        "tiny-far",
        "uq4ct",
        "lora",
        "123,456",
        "47 s",
        "contradicted",
        "3f2a9c",
        "at least 85 % right",
        "5d41402abc4b2a76",
        "no miscalibration seen|confident",
    ):
        assert re.search(words, text), words
    labels = [value for tag, name, value in elements.attributes if tag == "svg" and name == "aria-label"]
    assert len(labels) == elements.tags.count("svg")
    assert "Reliability of uq4ct on tiny-far" in labels


def test_a_report_is_the_same_to_the_byte_whoever_builds_it(runs: list[Path], page: str, tmp_path: Path) -> None:
    command = "import sys; from uq4ct.report import build_report; build_report(sys.argv[2:], sys.argv[1])"
    output = tmp_path / "again.html"
    subprocess.run(
        [sys.executable, "-c", command, output, *runs], check=True, env={"PYTHONHASHSEED": "7", "MPLBACKEND": "agg"}
    )
    assert output.read_text(encoding="utf-8") == page


def test_a_report_is_one_file_that_needs_no_script_and_no_network(page: str) -> None:
    elements = Elements(page)
    assert not {"script", "link", "iframe", "object", "form", "img", "base"} & set(elements.tags)
    assert not [name for _, name, _ in elements.attributes if name.startswith("on")]
    links = [value for _, name, value in elements.attributes if name in ("href", "src", "xlink:href")]
    assert all(value.startswith("#") for value in links)
    assert "default-src 'none'" in page
    assert "@import" not in page
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"|http-equiv', "", page)
    assert "prefers-color-scheme: dark" in page
    assert elements.open == []


def test_hostile_text_is_shown_and_never_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run <b>", "lora", 30, {PAYLOAD: 0.0})
    path = next(run.glob("evaluations/*/predictions.jsonl"))
    rows = predictions.read(path)
    for row in rows:
        row |= {"question": PAYLOAD, "stratum": PAYLOAD, "choices": [PAYLOAD] * len(row["choices"])}
    predictions.write(path, rows)
    write_json(path.with_name("metrics.json"), {"task": PAYLOAD, "split": PAYLOAD})
    write_manifest(path.parent)
    write_json(run / "uq4ct.json", {"method": PAYLOAD, "task": PAYLOAD, "notes": [PAYLOAD], PAYLOAD: PAYLOAD})
    write_json(run / "environment.json", {"device": PAYLOAD})
    build_report([run], tmp_path / "report.html", title=PAYLOAD)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    elements = Elements(page)
    assert "<script" not in page
    assert "<img" not in page
    assert not [name for _, name, _ in elements.attributes if name.startswith("on")]
    assert sum(PAYLOAD in part for part in elements.text) > 10


def test_missing_facts_and_files_do_not_break_a_report(tmp_path: Path) -> None:
    place = tmp_path / "run" / "evaluations" / "task"
    place.mkdir(parents=True)
    rows = made_rows(12, 0.0, 0.0, 1.0, False, "m")
    for row in rows:
        for key in ("stratum", "true_probabilities", "method", "seed", "logits", "question"):
            row.pop(key)
    predictions.write(place / "predictions.jsonl", rows)
    build_report([tmp_path / "run"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "unfinished: no manifest" in page
    assert "Known truth" not in page


def test_prediction_files_and_folders_of_runs_are_read_too(runs: list[Path], tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.csv"
    theirs.write_text('probabilities,label\n"[0.7, 0.3]",A\n"[0.6, 0.4]",B\n"[0.1, 0.9]",B\n')
    build_report([runs[0].parent, theirs], tmp_path / "report.html")
    text = " ".join(Elements((tmp_path / "report.html").read_text(encoding="utf-8")).text)
    assert "Calibration report: lora, uq4ct and theirs" in text


def test_all_right_answers_have_no_auroc_but_a_report(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"probabilities": {"A": 1.0, "B": 0.0}, "label": "A"}\n' * 3)
    build_report([tmp_path / "p.jsonl"], tmp_path / "report.html")
    assert "all 3 are right" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_two_runs_of_one_method_are_told_apart(tmp_path: Path) -> None:
    tasks = {"tiny": 0.0}
    folders = [make_run(tmp_path / name, "lora", 20, tasks) for name in ("first", "second", "third")]
    write_json(folders[2] / "uq4ct.json", {"method": "lora", "seed": 2})
    build_report(folders, tmp_path / "report.html")
    text = " ".join(Elements((tmp_path / "report.html").read_text(encoding="utf-8")).text)
    assert "lora seed 2" in text
    assert f"lora seed 1 ({folders[0]})" in text


def test_what_cannot_be_read_is_named(runs: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    with pytest.raises(UserError, match="no such run folder or prediction file"):
        build_report([tmp_path / "absent"], output)
    with pytest.raises(UserError, match="neither a run folder"):
        build_report([tmp_path], output)
    with pytest.raises(UserError, match=r"name it \.html"):
        build_report(runs, tmp_path / "report.pdf")
    with pytest.raises(UserError, match="does not exist"):
        build_report(runs, tmp_path / "absent" / "report.html")
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "uq4ct.json", {})
    with pytest.raises(UserError, match="no evaluation yet"):
        build_report([tmp_path / "run"], output)
    changed = tmp_path / "changed"
    shutil.copytree(runs[0], changed)
    with next(changed.glob("evaluations/*/predictions.jsonl")).open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=r"predictions\.jsonl: .* bytes, the manifest says"):
        build_report([changed], output)
    assert not output.exists()


def test_tables_for_terminal_markdown_and_spreadsheet_agree(runs: list[Path]) -> None:
    results = [json.loads(path.read_text()) for run in runs for path in sorted(run.glob("evaluations/*/metrics.json"))]
    text, markdown, csv = (table(results, format=format) for format in ("text", "md", "csv"))
    accuracy = f"{100 * results[0]['accuracy']:.1f}"
    assert accuracy in text.splitlines()[2]
    assert accuracy in markdown.splitlines()[2]
    header, *lines = csv.splitlines()
    cells = dict(zip(header.split(","), lines[0].split(","), strict=True))
    assert float(cells["accuracy"]) == results[0]["accuracy"]
    assert float(cells["ece_low"]) == results[0]["intervals"]["ece"][0]
    assert len(lines) == 4
    assert "FEU AUROC" in text
    assert "calibrated ECE" in text


def test_a_table_survives_hostile_names() -> None:
    result = {"task": "a|b\nc\x1b[31m", "method": "=cmd()", "n": 1, "accuracy": None}
    assert table([result], "md").splitlines()[2].startswith("| a\\|b c [31m | =cmd() | 1 | - |")
    assert "\x1b" not in table([result])
    assert "'=cmd()" in table([result], "csv")


def test_a_big_report_stays_below_two_megabytes(runs: list[Path], page: str) -> None:
    """4 methods on 4 tasks have 4 times these figures; 2,000 questions add no bytes, since no question is drawn."""
    assert 4 * len(page.encode()) < 2_000_000


def test_a_browser_shows_the_report_without_errors(runs: list[Path], page: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr"]
        command += ["--disable-background-networking", f"--user-data-dir={profile}", "--window-size=390,844"]
        command += [f"--screenshot={tmp_path / 'page.png'}", f"file://{tmp_path / 'report.html'}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    assert (tmp_path / "page.png").stat().st_size > 10_000
