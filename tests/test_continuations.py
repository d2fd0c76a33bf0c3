"""Options as continuations of a prompt that is computed once: the numbers of whole texts, or whole texts where not."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import peft
import pytest
import torch
import transformers as tf
from torch import nn
from training_toys import llama, mixture

from uq4ct import scoring
from uq4ct.adapters import MixLoraConfig
from uq4ct.adapters.dropout import adapter_dropout
from uq4ct.adapters.noise import watch_tokens
from uq4ct.adapters.router import sample_routing
from uq4ct.continuations import DRAWS_BY_TOKEN, FEWEST_ROWS, option_logits, why_whole_texts
from uq4ct.forward import base_of
from uq4ct.losses.calibration import functional_uncertainty
from uq4ct.methods.mc_dropout import McDropout
from uq4ct.scoring import collate, score, score_all, uq4ct_loss

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*", "ignore::UserWarning:peft.*")

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HEADS = {"vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64, **TOKENS}
SIZES = {**HEADS, "hidden_size": 16, "intermediate_size": 24}
GROUPED = {**SIZES, "num_key_value_heads": 1}
WINDOW = {"sliding_window": 5, "head_dim": 8}  # shorter than most prompts
BOTH_KINDS = {"layer_types": ["sliding_attention", "full_attention"]}
OPT = {"hidden_size": 16, "ffn_dim": 24, "word_embed_proj_dim": 16}

# In float64, but for Gemma 2, whose attention is float32 whatever the dtype of the model.
FAMILIES = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**GROUPED)),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**GROUPED, **WINDOW)),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**GROUPED, **BOTH_KINDS, sliding_window=5, use_sliding_window=True)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**GROUPED, head_dim=8)),
    "gemma": lambda: tf.GemmaForCausalLM(tf.GemmaConfig(**GROUPED, head_dim=8)),
    "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**GROUPED, **WINDOW, **BOTH_KINDS)),
    "gemma3_text": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**GROUPED, **WINDOW, **BOTH_KINDS)),
    "phi": lambda: tf.PhiForCausalLM(tf.PhiConfig(**SIZES)),
    "phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**GROUPED, sliding_window=5)),
    "gpt2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=64, n_inner=24, **TOKENS)
    ),
    "gpt_neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**SIZES)),
    "opt": lambda: tf.OPTForCausalLM(tf.OPTConfig(**HEADS, **OPT)),
}
ADAPTERS = {
    "lora": lambda: peft.LoraConfig(r=2, lora_dropout=0.5, target_modules="all-linear"),
    "ffn_block": lambda: MixLoraConfig(r=2, num_experts=4, routing="ffn_block"),
    "per_linear": lambda: MixLoraConfig(r=2, num_experts=4, routing="per_linear"),
}


def tolerance(family: str) -> dict[str, float]:
    return {"rtol": 0, "atol": 1e-5 if family == "gemma2" else 1e-10}


def build(family: str, adapter: str | None = None):
    """Return a random model in float64 whose every token and position matters."""
    model = FAMILIES[family]()
    if adapter is not None:
        config = ADAPTERS[adapter]()
        config.task_type = "CAUSAL_LM"
        model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.to(torch.float32 if family == "gemma2" else torch.float64).eval()


def options(number: int, seed: int = 0, choices: tuple[int, int] = (1, 5), lengths: tuple[int, int] = (1, 6)):
    generator = np.random.default_rng(seed)

    def text(low: int, high: int):
        return generator.integers(10, 50, size=generator.integers(low, high)).tolist()

    return [
        {
            "id": f"q{row}",
            "input_ids": text(3, 14),
            "option_ids": [text(*lengths) for _ in range(generator.integers(*choices))],
            "answer": 0,
        }
        for row in range(number)
    ]


EXAMPLES = options(8)


@torch.no_grad()
def whole_texts(model, examples, side: str = "left"):
    return scoring._score_options(model, collate(examples, 0, side))


@torch.no_grad()
def continued(model, examples, side: str = "left"):
    assert why_whole_texts(model) is None
    return score(model, collate(examples, 0, side))


def rows_and_tokens(model, work) -> list[tuple[int, int]]:
    """Return the shape of what the model embeds in each of its passes."""
    shapes = []
    embedding = base_of(model).get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    try:
        work()
    finally:
        handle.remove()
    return shapes


def assert_same(found, expected, **within):
    torch.testing.assert_close(found.choice_logits, expected.choice_logits, **within)
    assert len(found.routing) == len(expected.routing)
    assert found.log_normalizer.shape == expected.log_normalizer.shape
    assert not found.log_normalizer.any()
    for tokens in ("prompt", "last") if found.routing else ():
        feu = [functional_uncertainty(one.routing, one.routing_mask, tokens=tokens) for one in (found, expected)]
        torch.testing.assert_close(*feu, **within)
    assert torch.equal(found.routing_mask.sum(dim=-1), expected.routing_mask.sum(dim=-1))


# ---- the same numbers


@pytest.mark.parametrize("adapter", [None, *ADAPTERS])
@pytest.mark.parametrize("family", FAMILIES)
def test_continuations_score_as_whole_texts_do(family, adapter):
    model = build(family, adapter)
    expected = whole_texts(model, EXAMPLES)
    spread = expected.choice_logits[torch.isfinite(expected.choice_logits)]
    assert spread.std() > 1  # else a wrong position would show nowhere
    assert_same(continued(model, EXAMPLES), expected, **tolerance(family))
    assert bool(expected.routing) == (adapter in ("ffn_block", "per_linear"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3_text"])
def test_each_question_alone_has_the_numbers_of_its_batch(family):
    model = build(family)
    together = continued(model, EXAMPLES).choice_logits
    for row, example in enumerate(EXAMPLES):
        alone = continued(model, [example]).choice_logits[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=0, atol=1e-10)
        assert torch.isneginf(together[row, len(alone) :]).all()


def test_a_batch_padded_behind_its_texts_scores_the_same():
    model = build("llama", "ffn_block")
    assert_same(continued(model, EXAMPLES, "right"), whole_texts(model, EXAMPLES, "left"), rtol=0, atol=1e-10)


@pytest.mark.parametrize("choices", [(1, 2), (2, 3), (1, 9)])
@pytest.mark.parametrize("lengths", [(1, 2), (1, 9), (7, 8)])
def test_any_number_of_options_of_any_length(choices, lengths):
    model, examples = build("gpt2", "ffn_block"), options(9, 1, choices, lengths)
    assert_same(continued(model, examples), whole_texts(model, examples), rtol=0, atol=1e-10)


def test_an_option_without_tokens_is_certain():
    model = build("llama")
    examples = [{**EXAMPLES[0], "option_ids": [[], [11, 12], []]}, {**EXAMPLES[1], "option_ids": [[]]}]
    found = continued(model, examples)
    assert_same(found, whole_texts(model, examples), rtol=0, atol=1e-10)
    assert found.choice_logits[0, [0, 2]].tolist() == [0, 0]
    assert_same(continued(model, examples[1:]), whole_texts(model, examples[1:]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_bundled_model_in_float32_answers_as_before(batch_size, monkeypatch):
    folder = str(files("uq4ct.tiny") / "model")
    base = tf.AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    config = MixLoraConfig(r=2, num_experts=4, task_type="CAUSAL_LM", router_init_range=0.5)
    model = peft.get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "uqmoe" in name:
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    texts = ["Which animal is it ?", "The answer is one of these :", "What"]
    answers = [" a long answer of many words", " no", " the other one"]
    examples = [
        {"input_ids": tokenizer(text)["input_ids"], "option_ids": [tokenizer(a)["input_ids"] for a in answers[: 3 - row % 2]], "answer": 0}
        for row, text in enumerate(texts * 4)
    ]  # fmt: skip
    logits, mask, feu, mass = score_all(model, examples, 0, batch_size)
    monkeypatch.setattr(scoring, "why_whole_texts", lambda model: "compared")
    expected, expected_mask, expected_feu, expected_mass = score_all(model, examples, 0, batch_size)
    np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(feu, expected_feu, rtol=0, atol=1e-5)
    assert np.array_equal(mask, expected_mask)
    assert mass is expected_mass is None
    assert np.ptp(expected[mask[:, None]]) > 1


# ---- noise by token


@pytest.mark.parametrize("family", DRAWS_BY_TOKEN)
def test_dropout_at_test_meets_the_tokens_of_whole_texts(family):
    model = build(family, "lora")
    plain = continued(model, EXAMPLES).choice_logits
    for sample in range(2):
        with adapter_dropout(model, sample=sample):
            found = continued(model, EXAMPLES)
            assert_same(found, whole_texts(model, EXAMPLES), **tolerance(family))
        assert not torch.allclose(found.choice_logits, plain, atol=1e-3)


@pytest.mark.parametrize("routing", ["ffn_block", "per_linear"])
@pytest.mark.parametrize("family", DRAWS_BY_TOKEN)
def test_drawn_experts_are_those_of_whole_texts(family, routing):
    model = build(family, routing)
    with sample_routing(model, seed=3, sample=1):
        found = continued(model, EXAMPLES)
        assert_same(found, whole_texts(model, EXAMPLES), **tolerance(family))
    assert not torch.allclose(found.choice_logits, continued(model, EXAMPLES).choice_logits, atol=1e-3)


@pytest.mark.parametrize("adapter", ["lora", "ffn_block"])
def test_a_family_that_flattens_its_tokens_gets_whole_texts_while_noise_is_drawn(adapter):
    model = build("opt", adapter)
    noise = adapter_dropout(model, sample=0) if adapter == "lora" else sample_routing(model)
    assert why_whole_texts(model) is None
    with noise:
        assert why_whole_texts(model) == "noise by token is drawn, and opt may flatten its tokens"
        with torch.no_grad():
            found = score(model, collate(EXAMPLES, 0))
        assert torch.equal(found.choice_logits, whole_texts(model, EXAMPLES).choice_logits)


def test_hooks_inside_a_wrapper_see_whole_texts():
    model = build("llama", "lora")
    with watch_tokens(base_of(model)):
        assert why_whole_texts(model) == "hooks inside its wrappers read its input"
    assert why_whole_texts(model) is None


def test_mc_dropout_averages_the_passes_of_whole_texts(monkeypatch):
    model = build("llama", "lora")
    ask = {"ids": [example["id"] for example in EXAMPLES], "pad_token_id": 0, "batch_size": 3}
    found = McDropout(samples=3).predict(model, EXAMPLES, **ask)
    monkeypatch.setattr(scoring, "why_whole_texts", lambda model: "compared")
    expected = McDropout(samples=3).predict(model, EXAMPLES, **ask)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=1e-10)
    assert np.ptp(expected.logits[:, :, 0], axis=1).min() > 1e-3


# ---- what is computed


def test_a_prompt_is_computed_once_and_no_option_s_last_token_is():
    model = build("llama")
    examples = [{"input_ids": [11] * n, "option_ids": [[12] * 3] * 4, "answer": 0} for n in (10, 7)]
    assert rows_and_tokens(model, lambda: continued(model, examples)) == [(2, 10), (8, 2)]
    assert rows_and_tokens(model, lambda: whole_texts(model, examples)) == [(8, 13)]
    letters = [{**example, "option_ids": [[12], [13]]} for example in examples]
    assert rows_and_tokens(model, lambda: continued(model, letters)) == [(2, 10)]


def test_options_run_in_groups_of_similar_length_and_absent_ones_do_not_run():
    model = build("llama")
    lengths = [2, 9, 2, 2, 2, 9, 2, 2, 5]
    examples = [{"input_ids": [11, 12], "option_ids": [[13] * n for n in lengths], "answer": 0}]
    examples.append({"input_ids": [11], "option_ids": [[13] * 3, [13]], "answer": 0})
    shapes = rows_and_tokens(model, lambda: continued(model, examples))
    assert shapes == [(2, 2), (FEWEST_ROWS, 8), (2, 1)]  # ten options of two tokens or more
    many = options(30, choices=(4, 5), lengths=(2, 9))
    rows, widths = zip(*rows_and_tokens(model, lambda: continued(model, many)), strict=True)
    assert rows == (30, 30, 30, 30, 30)
    assert widths[1:] == tuple(sorted(widths[1:], reverse=True))
    assert widths[1] > widths[-1]


def test_gradients_and_training_keep_whole_texts():
    model = mixture(dropout=0.0)
    batch = collate(EXAMPLES, 0)
    whole = [tuple(batch["input_ids"].flatten(0, 1).shape)]
    model.eval()
    assert rows_and_tokens(model, lambda: score(model, batch)) == whole
    assert score(model, batch).choice_logits.requires_grad
    model.train()
    with torch.no_grad():
        assert rows_and_tokens(model, lambda: score(model, batch)) == whole
    assert rows_and_tokens(model, lambda: uq4ct_loss(model, batch)) == whole
    assert len(rows_and_tokens(model, lambda: score_all(model, EXAMPLES, 0, 8))) > 1


def test_nothing_is_left_behind():
    model = build("llama", "ffn_block")
    with torch.no_grad():
        before = model(input_ids=torch.tensor([[11, 12, 13]])).logits
        continued(model, EXAMPLES)
        assert torch.equal(model(input_ids=torch.tensor([[11, 12, 13]])).logits, before)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_wrapped_models_continue_too():
    class Wrapper(nn.Module):
        """What DistributedDataParallel is to this: a module that hands all on."""

        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args, **kwargs):
            return self.module(*args, **kwargs)

    model = build("llama", "ffn_block")
    expected = whole_texts(model, EXAMPLES)
    wrapped = Wrapper(model).eval()
    assert_same(continued(wrapped, EXAMPLES), expected, rtol=0, atol=1e-10)
    with sample_routing(wrapped):
        assert_same(continued(wrapped, EXAMPLES), whole_texts(wrapped, EXAMPLES), rtol=0, atol=1e-10)


# ---- where whole texts are needed

ROPE = {"rope_theta": 10000.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
LONGEST_PROMPT = max(len(example["input_ids"]) for example in EXAMPLES)
MAMBA = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
NEEDY = {
    "no position ids": (
        lambda: tf.BloomForCausalLM(tf.BloomConfig(vocab_size=50, hidden_size=16, n_layer=2, n_head=2)),
        "its forward takes no position_ids",
    ),
    "no cache": (
        lambda: tf.OpenAIGPTLMHeadModel(tf.OpenAIGPTConfig(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=64)),
        "its forward takes no past_key_values",
    ),
    "state space": (lambda: tf.MambaForCausalLM(tf.MambaConfig(**MAMBA)), "takes no position_ids, past_key_values"),
    "a recurrent state": (
        lambda: tf.RecurrentGemmaForCausalLM(tf.RecurrentGemmaConfig(**GROUPED, lru_width=16, attention_window_size=8)),
        "recurrent_gemma keeps something else of a text than keys and values",
    ),
    "layers of another kind": (
        lambda: tf.Lfm2ForCausalLM(tf.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"])),
        "lfm2 has layers of the kind conv",
    ),
    "chunked attention": (
        lambda: tf.Llama4ForCausalLM(tf.Llama4TextConfig(
            **GROUPED, head_dim=8, num_local_experts=2, attention_chunk_size=4, intermediate_size_mlp=24, attn_temperature_tuning=False)),
        "llama4_text has layers of the kind chunked_attention",
    ),
    "both ways": (
        lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**GROUPED, head_dim=8, use_bidirectional_attention=True)),
        "gemma3_text lets a prompt see what follows",
    ),
    "not causal": (lambda: _not_causal(llama()), "llama lets a prompt see what follows"),
    "an encoder": (lambda: tf.BertLMHeadModel(tf.BertConfig(**SIZES)), "bert lets a prompt see what follows"),
    "dynamic positions": (
        lambda: tf.LlamaForCausalLM(tf.LlamaConfig(
            **{**GROUPED, "max_position_embeddings": LONGEST_PROMPT}, rope_parameters={"rope_type": "dynamic", "factor": 4.0, **ROPE})),
        "its rotary positions (dynamic) hang on the length",
    ),
    "long positions": (
        lambda: tf.Phi3ForCausalLM(
            tf.Phi3Config(
                **GROUPED,
                original_max_position_embeddings=LONGEST_PROMPT,
                rope_parameters={**LONG, **ROPE, "original_max_position_embeddings": LONGEST_PROMPT},
            )
        ),
        "its rotary positions (longrope) hang on the length",
    ),
    "a prompt of its own": (
        lambda: peft.get_peft_model(llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
        "its adapter reads the tokens itself",
    ),
    "an adapter that looks for tokens": (
        lambda: peft.get_peft_model(
            llama(), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], alora_invocation_tokens=[11])
        ),
        "its adapter reads the tokens itself",
    ),
}  # fmt: skip


def _not_causal(model):
    model.config.is_causal = False
    return model


@pytest.mark.parametrize("name", NEEDY)
def test_a_model_that_needs_whole_texts_gets_them(name):
    torch.manual_seed(0)
    make, reason = NEEDY[name]
    model = make().eval()
    assert reason in why_whole_texts(model)
    expected = whole_texts(model, EXAMPLES).choice_logits
    with torch.no_grad():
        assert torch.equal(score(model, collate(EXAMPLES, 0)).choice_logits, expected)


@pytest.mark.parametrize("name", ["both ways", "not causal", "an encoder", "dynamic positions", "long positions"])
def test_continuations_of_such_a_model_would_be_wrong(name):
    torch.manual_seed(0)
    model = NEEDY[name][0]().eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    with torch.no_grad():
        found = option_logits(model, collate(EXAMPLES, 0))[0]
    expected = whole_texts(model, EXAMPLES).choice_logits
    real = torch.isfinite(expected)
    assert not torch.allclose(found[real], expected[real], atol=1e-2)


def test_a_question_beyond_the_original_length_leaves_the_others_their_positions():
    """With longrope one long text turns a whole batch to the long factors."""
    torch.manual_seed(0)
    settings = {**GROUPED, "max_position_embeddings": 64, "original_max_position_embeddings": 16}
    factors = {**LONG, **ROPE, "long_factor": [4.0, 8.0, 16.0, 32.0], "original_max_position_embeddings": 16, "factor": 4.0}
    model = tf.Phi3ForCausalLM(tf.Phi3Config(**settings, rope_parameters=factors))
    for parameter in model.parameters():
        parameter.data.mul_(5 if parameter.dim() > 1 else 1)
    short, long = ({"input_ids": list(range(3, end)), "choice_ids": [20, 21, 22], "answer": 0} for end in (9, 33))
    alone, together = (score_all(model, [short, long, short], 0, size)[0] for size in (1, 3))
    assert np.allclose(alone, together, rtol=0, atol=1e-5)
    with torch.inference_mode():
        mixed = score(model, collate([short, long], 0)).choice_logits
    assert np.abs(mixed[0].numpy() - alone[0, 0]).max() > 1e-2
