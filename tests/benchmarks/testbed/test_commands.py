"""`python -m benchmarks.testbed`, in process; what takes minutes is replaced."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.testbed import certificate, commands, recipes
from neuroscope import testbed

STORED = testbed.path("sd1") / "certificate.json"


@pytest.fixture
def run(capsys, tmp_path, monkeypatch, untyped):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            commands.main([str(each) for each in arguments])
        printed = capsys.readouterr()
        return stopped.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture
def asked(monkeypatch) -> list:
    """What was asked of the measurement and of the training, which are replaced."""
    asked: list = []

    def certify(name, **options):
        asked.append((name, options))
        return certificate.Certificate.from_json(STORED.read_text())

    def train(name, folder, quiet):
        asked.append((name, folder, quiet))
        return folder / "models" / name

    monkeypatch.setattr(certificate, "certify", certify)
    monkeypatch.setattr(recipes, "train", train)
    return asked


def test_a_certificate_is_printed_as_text_or_as_json(run, asked):
    assert run("certify") == (0, certificate.Certificate.from_json(STORED.read_text()).to_text() + "\n", "")
    assert run("certify", "sd1-natural", "--samples", 3, "--json", "-q") == (0, STORED.read_text() + "\n", "")
    assert asked == [("sd1", {"samples": 60, "quiet": False}), ("sd1-natural", {"samples": 3, "quiet": True})]


def test_a_certificate_is_written_as_json_or_as_a_card(run, asked):
    assert run("certify", "--output", "c.json", "--quiet")[0] == 0
    assert run("certify", "-o", "c.md")[0] == 0
    assert Path("c.json").read_text() == STORED.read_text()
    assert Path("c.md").read_text() == (testbed.path("sd1") / "README.md").read_text()


def test_a_model_is_trained_into_the_folder(run, asked):
    assert run("train", "clip", "-o", "new", "-q") == (0, f"wrote {Path('new', 'models', 'clip')}\n", "")
    assert run("train", "sd1")[0] == 0
    assert asked == [("clip", Path("new"), True), ("sd1", Path("runs"), False)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("certify", "clip"), "bundled pipeline 'clip' is unknown; choose one of pixart, pixart-natural, sd1, sd1-natural"),
        (("certify", "--samples", 0), "--samples=0 is not allowed; give 1 to 100000"),
        (("certify", "--samples", "x"), "Invalid value for '--samples'"),
        (("certify", "-o", "x.txt"), "x.txt is neither FILE.json nor FILE.md"),
        (("certify", "-o", "nowhere/x.json"), "nowhere"),
        (("certify", "sd1", "extra"), "extra"),
        (("train", "nope", "-o", "new"), "bundled model 'nope' is unknown"),
        (("train", "clip", "-o", "text.txt"), "text.txt"),
        (("train",), "Missing argument 'name'; see `python -m benchmarks.testbed --help`"),
        (("--nope",), "No such option: --nope; see `python -m benchmarks.testbed --help`"),
        (("nope",), "No such command 'nope'"),
        ((), "Missing command"),
    ],
)
def test_mistakes_are_refused_in_one_line(run, asked, arguments, words):
    Path("text.txt").write_text("no folder")
    code, out, error = run(*arguments)
    assert (code, out, error.count("\n")) == (2, "", 1), (code, out, error)
    assert error.startswith("python -m benchmarks.testbed: ")
    assert words in error
    assert (asked, [path.name for path in Path().iterdir()]) == ([], ["text.txt"])


def test_an_interrupt_is_told_in_one_line(run, monkeypatch):
    def interrupted(name, folder, quiet):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "train", interrupted)
    code, _, error = run("train", "clip")
    assert (code, error.strip()) == (130, "python -m benchmarks.testbed: interrupted")


def test_it_runs_as_a_module():
    line = [sys.executable, "-m", "benchmarks.testbed", "--help"]
    finished = subprocess.run(line, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert "certify" in finished.stdout
    assert "train" in finished.stdout
