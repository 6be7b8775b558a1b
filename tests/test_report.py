"""The page of runs: well-formed, needing nothing from elsewhere, and saying what the records say."""

import html.parser
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import rich.console
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fedfisher_jax import report
from fedfisher_jax.cli import _cli as cli
from fedfisher_jax.report import _figures, words_on_rule
from fedfisher_jax.report import _svg as svg

pytest.importorskip("jinja2")
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Checked(html.parser.HTMLParser):
    """Refuses tags that do not nest, names that are not closed, and whatever would be fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.count = [], [], {}

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        assert tag not in ("script", "link", "iframe", "object", "img"), tag
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "action", "data"):
                assert value.startswith(("#", "data:image/png;base64,")), (name, value[:80])
            if name == "style":
                assert not re.search(r"url\((?!#)", value), value
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def checked(text):
    page = Checked()
    page.feed(text)
    page.close()
    assert page.open == [] and text.startswith("<!DOCTYPE html>")
    for style in re.findall(r"<style>(.*?)</style>", text, re.DOTALL):
        assert "@import" not in style and not re.search(r"url\((?!#)", style)
    return page


def record(**changes):
    rules = {
        "fedavg": {"accuracy": 0.5, "loss": 1.0, "bits_up": 320, "diagnostics": {}},
        "fedfisher-kfac": {
            "accuracy": 0.75,
            "loss": 0.5,
            "bits_up": 960,
            "diagnostics": {"iterations": 100, "converged": False, "residual": 1e-4},
        },
    }
    return {
        "settings": {
            "dataset": "digits",
            "model": "mlp",
            "partition": "dirichlet-client",
            "alpha": 0.1,
            "epochs": 3,
            "clients": 2,
            "seed": 0,
            "rounds": 1,
        },
        "clients": {"sizes": [5, 7], "label_counts": [[5, 0], [3, 4]], "accuracies": [0.2, 0.4]},
        "rules": rules,
        "references": {"best_local": {"accuracy": 0.4, "loss": 2.0}, "ensemble": None},
        "fedavg_bits": 320,
        "versions": {"jax": "9.9"},
        "words": ["a <script>alert(1)</script> word"],
        "parameters": 10,
        "sampled": 2,
        "command": "fedfisher run --epochs 3",
        "complete": True,
        **changes,
    }


def test_a_page_is_well_formed_and_says_what_the_record_says():
    text = report.page([("my <b>run", record())])
    page = checked(text)
    said = " ".join(page.text)
    for words in (
        "75.0",
        "test accuracy (%)",
        "3.00",
        "fedfisher run --epochs 3",
        "9.9",
        "5 to 7 examples",
        "my <b>run",
    ):
        assert words in said, words
    assert "fedfisher-kfac: stopped after 100 iterations, residual 0.0001" in said
    assert page.count["svg"] == page.count["figure"] == 2 and "<b>" not in text
    assert 'class="best"><td>fedfisher-kfac' in text and "prefers-color-scheme: dark" in text
    assert text == report.page([("my <b>run", record())])


def test_runs_side_by_side_are_told_apart_by_what_differs():
    other = record(settings=record()["settings"] | {"alpha": 1.0})
    again = record(settings=record()["settings"] | {"seed": 1}, rules={"fedavg": record()["rules"]["fedavg"]})
    said = " ".join(checked(report.page([("a", record()), ("b", other), ("c", again)])).text)
    assert "alpha 0.1" in said and "alpha 1.0" in said and "50.0 ± 0.0" in said


def test_curves_over_rounds_and_megabytes(monkeypatch):
    lines = [{"round": n, "accuracy": 0.1 * n} for n in (1, 2, 3)]
    rules = {"fipa": {"accuracy": 0.3, "loss": 1.0, "bits_up": 4e6, "bits_up_warm_up": 2e6, "rounds": lines}}
    rules["fipa"]["personalised"] = {"accuracy_before": [0.1, 0.5], "accuracy": [0.2, 0.4]}
    rules["fipa"]["personalised_few"] = {"accuracy_before": [0.1, 0.5], "accuracy": [0.2, 0.6]}
    settings = record()["settings"] | {"rounds": 3, "warm_up_rounds": 1, "shots": 5}
    drawn = []
    real = svg.curve
    monkeypatch.setattr(
        svg, "curve", lambda axes, name, colour, y, x: (drawn.append(x), real(axes, name, colour, y, x))
    )
    page = checked(report.page([("r", record(rules=rules, settings=settings))]))
    assert page.count["svg"] == 4
    np.testing.assert_allclose(drawn, [[1, 2, 3], [0.5, 1.5, 2.5]])  # 2 clients, 2 Mbit and then 4 Mbit each
    said = " ".join(page.text)
    assert "1 of 2" in said and "fipa, accuracy, 5 examples" in said and "2 of 2" in said


def test_rules_have_colours_of_their_own():
    some = report.colours_of(["fedfish", "fedfisher-kfac+fedavg", "mine:rule", "fedavg"])
    assert len(set(some.values())) == 4 and list(some) == ["fedfish", "fedfisher-kfac+fedavg", "mine:rule", "fedavg"]
    assert report.colours_of(["fedavg", "x"])["fedavg"] == some["fedavg"]
    assert len(set(report.colours_of(map(str, range(16))).values())) == 16


def test_long_names_of_rules_are_broken_and_legends_fit():
    long = "pseudo-data+recalibrate@fc1,fc2:100+natural-gradient,steps=2,kind=monte_carlo"
    lines = _figures.broken(long).split("\n")
    assert lines == ["pseudo-data+recalibrate@fc1,fc2:100", "+natural-gradient,steps=2,", "kind=monte_carlo"]
    assert _figures.broken("fedavg") == "fedavg" and _figures.broken("x" * 50) == "x" * 50
    for names in ([long, "fedavg"], ["fedavg", "fedfish", "fipa"]):
        figure = Figure(figsize=(6.4, 4), layout="constrained")
        axes = figure.subplots()
        for name in names:
            axes.plot([0, 1], label=name)
        _figures.legend_below(figure, names)
        FigureCanvasAgg(figure).draw()
        box = figure.legends[0].get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_a_first_step_that_fails_squeezes_no_curves_after_a_warm_up(monkeypatch):
    def drawn(warm_up, *accuracies):
        rules = {"fedavg": {"accuracy": 0.8, "rounds": [{"round": n, "accuracy": a} for n, a in enumerate(accuracies)]}}
        cells = [{"varied": "", "seed": 0, "settings": {"warm_up_rounds": warm_up}, "rules": rules, "references": {}}]
        figures = []
        monkeypatch.setattr(_figures, "write_figure", lambda figure, path: figures.append(figure))
        _figures.plot_summary(report.summarise(cells, None), cells, "x")
        return figures[0].axes[0].get_ylim()

    assert drawn(2, 0.1, 0.8, 0.2, 0.78, 0.79, 0.8) == pytest.approx((77.8, 80.2))
    low, high = drawn(0, 0.1, 0.8, 0.2, 0.78, 0.79, 0.8)
    assert low < 10 < 80 < high


def test_large_heat_maps_are_pixels_inside_the_page():
    counts = np.arange(300 * 10).reshape(300, 10).tolist()
    text = svg.heat_map(record(clients={"sizes": [1] * 300, "label_counts": counts, "accuracies": []}))
    assert "data:image/png;base64," in text and len(text) < 400_000
    assert "currentColor" in text and svg.INK not in text


def test_the_command(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "result.json").write_text(json.dumps(record()))
    cli.main(["report", str(run)])
    assert "1 run" in capsys.readouterr().out
    checked((run / "report.html").read_text())
    for content, words in (("[1]", "is a list"), ("{", "is damaged"), ("{}", "record without")):
        (run / "result.json").write_text(content)
        with pytest.raises(SystemExit):
            cli.main(["report", str(run)])
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["report", str(tmp_path)])
    assert "expected the folder of a run" in capsys.readouterr().err


def test_no_name_is_cut_in_eighty_columns():
    name = "my_long_module_of_rules:a_rule_with_a_long_name+recalibrate@fc1,fc2:100"
    rule = {"accuracy": 0.5, "loss": 1.0, "bits_up": 123_456_789_000, "seconds": 12345.6}
    console = rich.console.Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(report.result_table(record(rules={name: rule, "fedfisher-diag": rule})))
    said = console.file.getvalue()
    joined = "".join(line.split("│")[1].strip() for line in said.splitlines() if line.startswith("│"))
    assert name in joined and "fedfisher-diag" in said and "…" not in said and "123456.79" in said


def shown(columns, names, width):
    """Lines of a sweep's table, and the texts of their first column."""
    rules = {name: {"accuracy": 0.5 + 0.1 * n} for n, name in enumerate(names)}
    references = {"best_local": {"accuracy": 0.4}}
    cells = [{"varied": one, "seed": n, "rules": rules, "references": references} for one in columns for n in (0, 1)]
    console = rich.console.Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(report.summary_table(report.summarise(cells, names[0]), "A caption.", width))
    lines = console.file.getvalue().splitlines()
    assert lines[0].rstrip() == "A caption." and max(map(len, lines)) <= width and "…" not in "".join(lines)
    return lines, [line.split("│")[1].strip() for line in lines if line.startswith("│")]


def test_no_name_or_number_of_a_sweep_is_broken_in_eighty_columns():
    names = ("fedavg", "fisher-merge", "fedfisher-kfac", "regmean")
    lines, first = shown([f"α {alpha}" for alpha in (0.01, 0.05, 0.1, 0.5, 1)], names, 80)
    rows = [*names, "best local", *(f"{name} − fedavg" for name in names[1:])]
    assert first == rows * 2 and [line.count("60.0 ± 0.0") for line in lines if "fisher-merge " in line][::2] == [4, 1]
    assert sum(line.count("α ") for line in lines) == 5


def test_long_names_go_on_between_words_and_break_only_where_nothing_else_helps():
    name = "fedfisher-kfac,damping=1+recalibrate@fc1"
    columns = [f"α {alpha}, learning rate {rate}" for alpha in (0.05, 0.1, 0.5) for rate in (0.01, 0.05)]
    lines, first = shown(columns, ("fedavg", name), 80)
    assert [text for text in first if text] == ["fedavg", name, "best local", name, "− fedavg"] * 3
    assert "".join(lines).count("60.0 ± 0.0") == 6
    lines, first = shown(columns, ("fedavg", name), 40)
    assert name in "".join(first) and "".join(lines).count("60.0 ± 0.0") == 6


def test_words_on_rules_are_unchanged_by_those_on_diagnostics():
    assert words_on_rule("r", record()["rules"]["fedfisher-kfac"]) == [
        "r: its solver did not converge in 100 iterations, residual 0.0001"
    ]


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
LOOK = """<pre id="seen"></pre><script>
const inside = (a, b) =>
  a.left >= b.left - 1 && a.right <= b.right + 1 && a.top >= b.top - 1 && a.bottom <= b.bottom + 1;
const seen = {figures: [], cut: [], wide: document.documentElement.scrollWidth - window.innerWidth};
for (const svg of document.querySelectorAll("figure > svg")) {
  const box = svg.getBoundingClientRect();
  seen.figures.push([box.width, box.height]);
  for (const text of svg.querySelectorAll('g[id^="text_"]'))
    if (text.childElementCount && !inside(text.getBoundingClientRect(), box)) seen.cut.push(text.textContent.trim());
}
for (const cell of document.querySelectorAll("td, th, p, h1, h2, h3, li, pre"))
  if (cell.scrollWidth > cell.clientWidth + 1) seen.cut.push(cell.textContent);
document.getElementById("seen").textContent = JSON.stringify(seen);
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
@pytest.mark.parametrize("width", [1280, 500])  # narrower windows Chromium does not make; the style turns at 512
def test_in_a_browser_nothing_is_cut(width, tmp_path):
    rules = {
        name: rule | {"clients": {"accuracy": [0.5, 0.7], "loss": [1.0, 2.0]}, "confusion": [[3, 1], [0, 4]]}
        for name, rule in record()["rules"].items()
    }
    own = {"own": {"after": {"accuracy": [0.9, 0.8], "loss": [0.1, 0.2]}}}
    classes = ["a class with a name that is very long", "$b_"]
    one = record(rules=rules, clients=record()["clients"] | own, classes=classes)
    text = report.page([("a run", one)])
    checked(text)
    (tmp_path / "page.html").write_text(text.replace("</body>", LOOK))
    how = ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", "--dump-dom")
    how = (*how, "--enable-logging=stderr", f"--window-size={width},2000", f"file://{tmp_path}/page.html")
    done = subprocess.run([BROWSER, *how], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    seen = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', done.stdout).group(1))
    assert len(seen["figures"]) == 4 and all(w > 200 and h > 100 for w, h in seen["figures"])
    assert seen["cut"] == [] and seen["wide"] <= 0


def test_a_score_that_was_not_finite_is_a_dash_and_the_others_are_shown(tmp_path):
    """Records have None in the place of what is NaN."""
    rules = {name: dict(rule) for name, rule in record()["rules"].items()}
    rules["fedavg"] |= {"accuracy": None, "loss": None}
    for wrong in (rules, {"fedavg": rules["fedavg"]}):
        console = rich.console.Console(width=100, file=io.StringIO(), force_terminal=False)
        console.print(report.result_table(record(rules=wrong)))
        (line,) = [line for line in console.file.getvalue().splitlines() if "fedavg" in line]
        assert line.count("–") == 2
        assert "–" in " ".join(checked(report.page([("run", record(rules=wrong))])).text)
        report.plot_accuracy(record(rules=wrong), tmp_path / "bars.png")
        assert (tmp_path / "bars.png").stat().st_size > 1000


def test_a_client_whose_score_was_not_finite_leaves_a_page_of_the_others():
    """One client's number may be missing, before and after fine-tuning."""
    judged = {"clients": {"accuracy": [0.5, None], "loss": [1.0, None]}}
    tuned = {name: [0.5, None] for name in ("accuracy", "accuracy_before", "loss", "loss_before")}
    rules = {name: {**rule, **judged, "personalised": tuned} for name, rule in record()["rules"].items()}
    own = {"after": {"accuracy": [0.4, None], "loss": [1.0, None]}}
    page = checked(report.page([("run", record(rules=rules, clients=record()["clients"] | {"own": own}))]))
    assert page.count["svg"] == 3


def test_a_setting_that_only_a_later_run_has_tells_runs_apart():
    other = record(settings=record()["settings"] | {"server_momentum": 0.5})
    said = " ".join(checked(report.page([("a", record()), ("b", other)])).text)
    assert "server_momentum None" in said and "server_momentum 0.5" in said


def test_a_mean_of_no_rounds_is_refused():
    with pytest.raises(ValueError, match="count: got 0"):
        report.mean_of_last([record()], 0)
