import torch
from safetensors.torch import save_file

from tests.results import differing


def test_folders_are_compared_bit_by_bit(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    tensor = torch.tensor([0.0, torch.nan])
    for folder in (first, second):
        (folder / "demo").mkdir(parents=True)
        save_file({"scores": tensor}, folder / "same.safetensors", metadata={"made in": folder.name})
        (folder / "demo" / "table.csv").write_text("layer,score\n0,1\n")
    assert differing(first, second) == []
    save_file({"scores": -tensor}, first / "sign.safetensors")
    save_file({"scores": tensor}, second / "sign.safetensors")
    save_file({"scores": tensor.double()}, first / "format.safetensors")
    save_file({"scores": tensor}, second / "format.safetensors")
    save_file({"scores": tensor}, second / "extra.safetensors")
    (second / "demo" / "table.csv").write_text("layer,score\n0,2\n")
    assert differing(first, second) == ["demo/table.csv", "extra.safetensors", "format.safetensors", "sign.safetensors"]
