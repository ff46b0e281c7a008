"""Results on the Hugging Face hub, pushed to and loaded from a hub on this machine."""

import json
import logging
import socket

import pytest
from huggingface_hub import ModelCard, constants
from PIL import Image

import neuroscope as ns
from neuroscope.cli import main
from neuroscope.core.artifacts import Artifact
from neuroscope.core.sharing.hub import is_repository
from neuroscope.core.sharing.pushing import LORA
from tests import hub as hubs
from tests.fuzz.examples import FROM, NEURONS, examples

RED = Image.new("RGB", (4, 4), "red")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with hubs.running(monkeypatch, tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def unreachable(monkeypatch, tmp_path):
    """A hub at a port where nobody listens."""
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    hubs.ask(monkeypatch, f"http://127.0.0.1:{port}", tmp_path / "cache")
    return f"http://127.0.0.1:{port}"


def same(one: Artifact, other: Artifact) -> bool:
    """Whether both would be written to equal files."""
    return type(one) is type(other) and one.to_file()[0] == other.to_file()[0]


def card_of(hub, name="me/it") -> ModelCard:
    return ModelCard(hub.repositories[name]["main"]["README.md"].decode())


@pytest.mark.parametrize("made", examples(), ids=lambda made: made.kind)
def test_every_kind_comes_back_the_same_with_a_card(made, hub):
    assert made.push_to_hub("me/it") == f"{hub.url}/me/it"
    assert same(ns.load("me/it"), made)
    card = card_of(hub)
    assert card.data.library_name == "neuroscope"
    assert {"neuroscope", made.kind} <= set(card.data.tags)
    assert 'ns.load("me/it")' in card.text
    assert "Without neuroscope" in card.text
    assert ns.read_header("me/it")["kind"] == made.kind


def test_a_card_says_what_was_found_and_for_which_model(hub):
    scores = next(each for each in examples() if isinstance(each, ns.LayerScores) and each.effects)
    scores.push_to_hub("me/it", base_model="owner/model-1.5", licence="mit", images={"before": RED, "after": RED})
    card = card_of(hub)
    assert (card.data.base_model, card.data.license) == ("owner/model-1.5", "mit")
    assert "stipple é" in card.text
    for row in scores.to_frame().itertuples():
        assert f"| {row.layer} | {row.name} | {row.score:.4g} | {row.low:.4g} | {row.high:.4g} |" in card.text
    assert "![before](before.png)" in card.text
    assert hub.repositories["me/it"]["main"]["after.png"].startswith(b"\x89PNG")


def test_a_card_names_the_results_own_model_where_the_hub_can_have_it(hub):
    at_home, away = (ns.Neurons({"a": [0]}, {"a": 2}, ns.Provenance(model=model)) for model in ("/home/me/model", "owner/sd.1-5"))
    at_home.push_to_hub("me/it")
    assert card_of(hub).data.base_model is None
    away.push_to_hub("me/it")
    assert card_of(hub).data.base_model == "owner/sd.1-5"


def test_words_of_a_concept_are_no_markup_of_a_card(hub):
    ns.Neurons({"a": [0]}, {"a": 2}, ns.Provenance(concept="<script> *x*\n# y")).push_to_hub("me/it")
    assert "# \\<script\\> \\*x\\* \\# y: a set of neurons" in card_of(hub).text


def test_a_lora_is_pushed_beside_its_change_and_named_by_the_card(hub, tmp_path):
    (tmp_path / "lora.safetensors").write_bytes(b"a LoRA")
    ns.NeuronMask(NEURONS).push_to_hub("me/it", lora=tmp_path / "lora.safetensors")
    assert hub.repositories["me/it"]["main"][LORA] == b"a LoRA"
    assert f'pipe.load_lora_weights("me/it", weight_name="{LORA}")' in card_of(hub).text
    with pytest.raises(ns.InvalidFile, match="the LoRA file none cannot be read: No such file"):
        ns.NeuronMask(NEURONS).push_to_hub("me/it", lora="none")


def test_the_without_part_of_a_card_runs(hub):
    ns.NeuronMask(NEURONS).push_to_hub("me/it")
    code = card_of(hub).text.split("```python\n")[-1].split("```")[0]
    names = {}
    exec(code, names)
    assert names["header"]["kind"] == "neuron-mask"
    assert names["tensors"]["indices:unet.0.key"].tolist() == [0, 3]


def test_a_branch_is_pushed_to_and_loaded_from(hub):
    other = ns.Neurons({"a": [1]}, {"a": 2}, FROM)
    NEURONS.push_to_hub("me/it", private=True)
    other.push_to_hub("me/it", revision="second")
    assert ns.load("me/it") == NEURONS
    assert ns.load("me/it", revision="second") == other
    assert hub.created[0]["visibility"] == "private"
    assert "visibility" not in hub.created[1]
    with pytest.raises(ns.InvalidFile, match="me/it has no revision 'third'; give a branch, a tag or a commit"):
        ns.load("me/it", revision="third")


def test_loading_says_that_the_hub_is_asked_and_checks_the_kind(hub, caplog):
    NEURONS.push_to_hub("me/it")
    with caplog.at_level(logging.INFO, "neuroscope"):
        ns.load("me/it")
    assert f"no file me/it is here; asking {hub.url} for it" in caplog.messages
    with pytest.raises(ns.InvalidFile, match="holds neurons|a neuron-mask is needed"):
        ns.load("me/it", ns.NeuronMask)


def test_a_path_that_exists_wins(hub, tmp_path):
    (tmp_path / "me").mkdir()
    mine = ns.Neurons({"a": [1]}, {"a": 2})
    NEURONS.push_to_hub("me/it")
    ns.save(mine, "me/it")
    asked = len(hub.requests)
    assert ns.load("me/it") == mine
    assert len(hub.requests) == asked
    with pytest.raises(ns.InvalidInput, match="revision='main' would be ignored: me/it is no repository"):
        ns.load("me/it", revision="main")


@pytest.mark.parametrize(
    "name", ["mask", "me/mask.safetensors", "/me/mask", "./me/mask", "a/b/c", "me/", "me/-x", "m e/x", "", "a--b/c", "a/" + "b" * 99]
)
def test_only_owner_and_name_ask_the_hub(name, hub):
    assert not is_repository(name)
    with pytest.raises(ns.InvalidFile):
        ns.load(name)
    assert hub.requests == []
    with pytest.raises(ns.InvalidInput, match="is no repository of the hub; write owner/name of letters, digits, - and _"):
        NEURONS.push_to_hub(name)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": {"a b": RED}}, "'a b' names no image of a card; use letters"),
        ({"images": {"../x": RED}}, "names no image of a card"),
        ({"images": {"before": "red"}}, "an image of the card"),
        ({"images": [RED]}, "images"),
        ({"licence": 3}, "licence"),
        ({"private": "yes"}, "private"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_the_hub_is_asked(options, message, hub, untyped):
    with pytest.raises(ns.InvalidInput, match=message):
        NEURONS.push_to_hub("me/it", **options)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "shows you no repository me/it; check the name, or log in with `hf auth login`"),
        (403, "does not let you at me/it; ask its owner for access"),
        (418, "refuses me/it: .*; try again later"),
    ],
)
def test_what_the_hub_refuses_is_one_clear_line(status, said, hub):
    hub.status = status
    with pytest.raises(ns.InvalidFile, match=f"^there is no file me/it here, and {hub.url} {said}"):
        ns.load("me/it")
    with pytest.raises(ns.InvalidFile, match=f"^nothing was pushed, and {hub.url} {said}"):
        NEURONS.push_to_hub("me/it")


def test_an_unknown_repository_and_one_of_something_else(hub):
    with pytest.raises(
        ns.InvalidFile, match=f"there is no file me/none here, and {hub.url} shows you no repository me/none; check the name"
    ):
        ns.load("me/none")
    hub.repositories["me/model"] = {"main": {"config.json": b"{}"}}
    with pytest.raises(ns.InvalidFile, match="me/model has no neuroscope.safetensors, so it holds nothing that neuroscope pushed"):
        ns.load("me/model")


def test_a_damaged_file_of_the_hub_is_refused(hub):
    NEURONS.push_to_hub("me/it")
    hub.repositories["me/it"]["main"]["neuroscope.safetensors"] = b"broken"
    with pytest.raises(ns.InvalidFile, match="is damaged or not a safetensors file"):
        ns.load("me/it")


def test_without_a_network_one_line_says_so(unreachable):
    said = f"{unreachable} cannot be reached for me/it; check the network, or give an existing file"
    with pytest.raises(ns.InvalidFile, match=f"^there is no file me/it here, and {said}$"):
        ns.load("me/it")
    with pytest.raises(ns.InvalidFile, match=f"^nothing was pushed, and {said}$"):
        NEURONS.push_to_hub("me/it")


def test_without_a_network_what_is_in_the_cache_is_loaded(hub, monkeypatch):
    NEURONS.push_to_hub("me/it")
    ns.load("me/it")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert ns.load("me/it") == NEURONS


@pytest.fixture
def run(capsys, untyped):
    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main([str(each) for each in arguments])
        printed = capsys.readouterr()
        return stopped.value.code or 0, printed.out, printed.err

    return run


def test_the_command_line_pushes_and_shows(run, hub, tmp_path):
    ns.save(NEURONS, "mask.safetensors")
    RED.save("before.png")
    code, out, _ = run("push", "mask.safetensors", "me/it", "--image", "before.png", "--licence", "mit", "--private")
    assert (code, out) == (0, f"pushed mask.safetensors to {hub.url}/me/it\nload it with ns.load('me/it')\n")
    assert "before.png" in hub.repositories["me/it"]["main"]
    assert run("show", "me/it") == run("show", "mask.safetensors")
    assert json.loads(run("push", "mask.safetensors", "me/it", "--json")[1]) == {"address": f"{hub.url}/me/it"}
    code, _, err = run("show", "me/none")
    assert code == 2
    assert err.startswith("neuroscope: there is no file me/none here, and ")


def test_the_command_line_applies_a_repository(run, hub):
    ns.NeuronMask(NEURONS).push_to_hub("me/it")
    code, _, err = run("generate", "--apply", "me/it", "--prompt", "a red star", "--num-inference-steps", 1, "-q")
    assert code == 2
    assert "the mask was made for the family family" in err
