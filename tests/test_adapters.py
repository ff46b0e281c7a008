"""Weights that others put into a model: LoRA, fused projections, IP-Adapters."""

import pytest
import torch
from peft import LoraConfig

from neuroscope import HookGraph, InvalidInput, SiteNeverRan, UnsupportedModel, export_lora, fold
from neuroscope.generation.batches import Sweep
from neuroscope.pipeline.doctor import diagnose
from neuroscope.pipeline.weights import outgoing_norm, reader_of
from tests.families import tiny
from tests.families.tiny import mask, wrong


class TestLora:
    @pytest.fixture
    def adapted(self, fresh):
        rank = LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules=["to_v", "to_out.0"])
        torch.manual_seed(0)
        fresh.unet.add_adapter(rank)
        return fresh

    def test_activations_are_those_with_the_adapter(self, adapted, graph):
        adapted.unet.load_state_dict(adapted.unet.state_dict())
        mine = HookGraph(adapted)
        (site,) = mine.sites.where(layer=8, role="value")
        context = mine.text.encode([tiny.PROMPT])
        layer = mine.module(site)
        with torch.no_grad():
            plain = layer.base_layer(context)
            expected = plain + context @ layer.get_delta_weight("default").T
        with mine.capture([site]) as captured:
            tiny.draw(adapted, num_inference_steps=1)
        torch.testing.assert_close(captured.select(site.path, rows="conditional")[0], expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(plain, expected, atol=1e-3)

    def test_a_calls_own_scale_is_refused_where_the_text_encoder_has_one(self, adapted):
        """Prompts of sweeps are encoded once, before the call; a denoiser's adapter alone follows the call's scale."""
        scaled = {"cross_attention_kwargs": {"scale": 0.5}}
        Sweep(HookGraph(adapted), [tiny.PROMPT], scaled, batch_size=1)
        adapted.text_encoder.add_adapter(LoraConfig(r=4, target_modules=["v_proj"]))
        Sweep(HookGraph(adapted), [tiny.PROMPT], {}, batch_size=1)
        with pytest.raises(InvalidInput, match=r"holds a scale for a LoRA of the text encoder, .* pipe.set_adapters\(name, scale\)"):
            Sweep(HookGraph(adapted), [tiny.PROMPT], scaled, batch_size=1)

    def test_outgoing_norms_are_those_with_the_adapter(self, adapted):
        mine = HookGraph(adapted)
        (site,) = mine.sites.where(layer=8, role="value")
        reader = adapted.unet.get_submodule(reader_of(mine.family, site))
        effective = reader.base_layer.weight + reader.get_delta_weight("default")
        torch.testing.assert_close(outgoing_norm(mine.family, mine.denoiser, site), effective.double().norm(dim=0))
        adapted.unet.disable_adapters()
        torch.testing.assert_close(outgoing_norm(mine.family, mine.denoiser, site), reader.base_layer.weight.double().norm(dim=0))

    @pytest.mark.parametrize("when", ["loaded", "unloaded"])
    def test_it_may_come_and_go_after_the_graph(self, fresh, when):
        """Adapters put another module in a site's place; hooks sit on the one that is there."""
        rank = LoraConfig(r=4, init_lora_weights=False, target_modules=["to_v", "to_out.0"])
        torch.manual_seed(0)
        if when == "loaded":
            graph = HookGraph(fresh)
            fresh.unet.add_adapter(rank)
        else:
            fresh.unet.add_adapter(rank)
            graph = HookGraph(fresh)
            fresh.unload_lora_weights()
        runs = []
        for each in (graph, HookGraph(fresh)):
            sites = each.sites.where(layer=8, role=("value", "output"))
            with each.apply(mask(each)), each.capture(sites) as captured:
                runs.append([tiny.draw(fresh)])
            runs[-1] += [captured[site.path] for site in sites]
            with each.rewire({"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2": lambda output, _guided: 2 * output}):
                runs[-1].append(tiny.draw(fresh))
        assert all(torch.equal(mine, new) for mine, new in zip(*runs, strict=True))

    def test_one_that_comes_inside_a_block_is_an_error(self, fresh):
        graph = HookGraph(fresh)
        known = "another module was put in the place of unet.*to_v inside the block, as adapters .*; do that before the block"
        rank = LoraConfig(r=4, init_lora_weights=False, target_modules=["to_v"])
        with pytest.raises(SiteNeverRan, match=known), graph.apply(mask(graph)):
            fresh.unet.add_adapter(rank) or tiny.draw(fresh)

    def test_outgoing_norms_honour_every_kind_of_adapter(self, fresh):
        """DoRA scales the whole weight, beside adding to it."""
        fresh.unet.add_adapter(LoraConfig(r=4, use_dora=True, init_lora_weights=False, target_modules=["to_out.0"]))
        mine = HookGraph(fresh)
        (site,) = mine.sites.where(layer=8, role="value")
        reader = fresh.unet.get_submodule(reader_of(mine.family, site))
        before = outgoing_norm(mine.family, mine.denoiser, site)
        fresh.unet.fuse_lora()
        torch.testing.assert_close(before, reader.base_layer.weight.double().norm(dim=0), atol=1e-5, rtol=1e-5)

    def test_it_is_found_and_folding_into_it_is_refused(self, adapted):
        mine = HookGraph(adapted)
        assert [finding.state for finding in diagnose(adapted) if finding.name == "LoRA"] == ["note"]
        with pytest.raises(UnsupportedModel, match="carries a LoRA; unload it, or fuse it"):
            fold(mine, mask(mine, "all"))


class TestFused:
    @pytest.mark.parametrize("write", [fold, lambda graph, change: export_lora(graph, change, "nowhere")], ids=["fold", "export"])
    def test_weights_that_are_not_used_are_not_changed(self, fresh, write):
        graph = HookGraph(fresh)
        fresh.unet.fuse_qkv_projections()
        with pytest.raises(UnsupportedModel, match="its projections are fused; call `unfuse_qkv_projections\\(\\)` first"):
            write(graph, mask(graph, "all"))

    def test_hooks_on_them_are_an_error_with_that_cause(self, fresh):
        graph = HookGraph(fresh)
        fresh.unet.fuse_qkv_projections()
        with pytest.raises(SiteNeverRan, match="its projections are fused; call `unfuse_qkv_projections"), graph.apply(mask(graph)):
            tiny.draw(fresh)


class TestIpAdapter:
    @pytest.fixture
    def adapter(self, fresh):
        """The weights of an IP-Adapter for this UNet, random."""
        width = fresh.unet.config.cross_attention_dim
        proj = {"proj.weight": torch.randn(4 * width, 64), "proj.bias": torch.zeros(4 * width)}
        proj |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
        keys = {}
        for number, name in enumerate(name for name in fresh.unet.attn_processors if "attn2" in name):
            out = fresh.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for kind in ("k", "v"):
                keys[f"{2 * number + 1}.to_{kind}_ip.weight"] = torch.randn(out, width)
        return {"image_proj": proj, "ip_adapter": keys}

    def test_it_is_refused_by_name(self, fresh, adapter):
        fresh.unet._load_ip_adapter_weights([adapter])
        assert "IP-Adapter" in wrong(fresh)
        with pytest.raises(UnsupportedModel, match=r"image tokens of its IP-Adapter pass beside the hooked projections; call `pipe.unload"):
            HookGraph(fresh)

    def test_it_is_refused_when_it_comes_after_the_graph(self, fresh, adapter):
        graph = HookGraph(fresh)
        fresh.unet._load_ip_adapter_weights([adapter])
        with pytest.raises(UnsupportedModel, match="IP-Adapter"), graph.apply(mask(graph)):
            raise AssertionError("no image may be made")
