"""LoRA through peft: nothing changes at the start, ties hold, and what is saved computes what was trained."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
import tiny  # noqa: E402
import transformers  # noqa: E402
from ugr_fast.lora import Reference, is_adapted, merged, with_lora  # noqa: E402

TOKENS = torch.tensor([[3, 7, 2, 9], [4, 4, 8, 1]])


def trained(architecture, steps=3):
    """A model, its logits before, and the model in adapters after a few steps."""
    model = tiny.model(tiny.catalogue().vocabulary, architecture, spread=1.0)
    before = logits_of(model)
    adapted = with_lora(model, rank=4, alpha=8)
    assert torch.equal(logits_of(adapted), before)
    reference = Reference(adapted)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        adapted(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted, reference, before


def logits_of(model):
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_merged_computes_what_was_trained(architecture, tmp_path):
    adapted, _, before = trained(architecture)
    after = logits_of(adapted)
    assert (after - before).abs().max() > 0.01
    plain = merged(adapted)
    assert not is_adapted(plain)
    assert is_adapted(adapted)
    torch.testing.assert_close(logits_of(plain), after, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(logits_of(adapted), after, rtol=0, atol=0)
    plain.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert again.config.tie_word_embeddings == plain.config.tie_word_embeddings
    exact = tiny.keep_float64(again)
    torch.testing.assert_close(logits_of(exact), after, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_reference_is_the_start_and_leaves_no_trace(architecture):
    adapted, reference, before = trained(architecture)
    after = logits_of(adapted)
    with reference.of(adapted) as frozen:
        assert torch.equal(frozen(TOKENS).logits, before)
    with pytest.raises(KeyError), reference.of(adapted):
        raise KeyError
    assert torch.equal(logits_of(adapted), after)


def test_the_reference_of_a_model_that_is_trained_whole():
    model = tiny.model(tiny.catalogue().vocabulary)
    before, reference = logits_of(model), Reference(model)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    with reference.of(model) as frozen:
        assert torch.equal(logits_of(frozen), before)
        assert not torch.is_grad_enabled()
    assert merged(model) is model


@pytest.mark.parametrize(("architecture", "tied"), [("qwen3", True), ("gpt2", True), ("llama", False)])
def test_adapters_embeddings_and_head_learn_and_ties_hold(architecture, tied):
    adapted, _, _ = trained(architecture)
    embeddings, head = adapted.get_input_embeddings(), adapted.get_output_embeddings()
    assert (embeddings.weight is head.weight) == tied
    learns = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    tables = [name for name in learns if "lora_" not in name]
    assert len(tables) == (1 if tied else 2)
    layers = [name for name, module in adapted.named_modules() if hasattr(module, "lora_A")]
    assert len(learns) == 2 * len(layers) + len(tables)
    assert not any("lm_head" in name for name in layers)
