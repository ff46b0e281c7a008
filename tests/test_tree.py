"""What must hold of the tree as a whole."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECRETS = re.compile(r"hf_[A-Za-z0-9]{20,}|ghp_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY")
ARCHITECTURE = re.compile(r"up_blocks|down_blocks|add_k_proj|attn2\.to_")


def _tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def test_no_file_holds_a_secret():
    texts = [path for path in _tracked() if path.suffix not in (".safetensors", ".png")]
    assert len(texts) > 50
    assert [path for path in texts if path != Path(__file__) and SECRETS.search(path.read_text())] == []


def test_no_bundled_model_says_where_it_was_made():
    configs = [path for path in _tracked() if path.name == "config.json" and "weights" in path.parts]
    assert len(configs) >= 4 * 3
    assert [path for path in configs if "_name_or_path" in path.read_text()] == []


def test_the_bundled_models_are_small():
    weights = ROOT / "neuroscope" / "testbed" / "weights"
    sizes = {folder.name: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in weights.iterdir()}
    assert all(size <= 15e6 for size in sizes.values()), sizes
    assert sum(sizes.values()) <= 40e6


def test_only_families_name_architectures():
    package = ROOT / "neuroscope"
    named = {path.relative_to(package).parent for path in package.rglob("*.py") if ARCHITECTURE.search(path.read_text())}
    allowed = (Path("pipeline/families"), Path("testbed"))
    assert [each for each in named if not any(each.is_relative_to(room) for room in allowed)] == []
