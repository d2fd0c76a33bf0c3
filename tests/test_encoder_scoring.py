"""An encoder's answers: one score per real sequence, FEU by question, and every loss and noise that looks at rows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from encoder_toys import CLASSES, FAMILIES, KINDS, encoder, questions, tokenizer
from peft import LoraConfig, get_peft_model

from uq4ct.adapters import MixLoraConfig, linear_targets
from uq4ct.adapters.dropout import adapter_dropout
from uq4ct.encoders import with_head
from uq4ct.errors import UserError
from uq4ct.laplace.linearised import Linearised, lora_weights
from uq4ct.losses.calibration import functional_uncertainty
from uq4ct.losses.objective import Objective
from uq4ct.scoring import collate, context_length, padding_side_of, score, score_all, uq4ct_loss
from uq4ct.sequences import SequenceEncoder
from uq4ct.training import CalibratedTrainer
from uq4ct.variational.backprop import GaussianLinear

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def examples(family="bert", kind="multiple_choice", number=12):
    classes = CLASSES if kind == "classification" else ()
    base = SimpleNamespace(
        tokenizer=tokenizer(FAMILIES[family][2]),
        kind=kind,
        classes=classes,
        context_length=None,
        model=encoder(family, kind),
    )
    reader = SequenceEncoder(base)
    return reader.encode_all(questions(number, classes)), reader.pad_token_id


def mixture(family="bert", kind="multiple_choice", seed=1, **options):
    base = encoder(family, kind)
    config = MixLoraConfig(**{"r": 2, "num_experts": 4, "lora_dropout": 0.0, "router_init_range": 0.5, **options})
    return randomise(get_peft_model(base, with_head(config, base)).eval(), seed)


def lora(family="bert", kind="multiple_choice", **options):
    base = encoder(family, kind)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=linear_targets(base), **options)
    return randomise(get_peft_model(base, with_head(config, base)).eval())


def randomise(model, seed=1):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "uqmoe_" in name or "lora_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_scores_are_those_of_transformers_for_one_question_at_a_time(family, kind):
    """Ragged questions in one padded batch, against the model's own forward without any padding."""
    model, (encoded, pad) = encoder(family, kind), examples(family, kind)
    scores = score(model, collate(encoded, pad, "right"))
    segments = getattr(model.config, "type_vocab_size", 0) > 1
    for row, example in enumerate(encoded):
        if kind == "multiple_choice":
            for choice, option in enumerate(example["option_ids"]):
                first = example["input_ids"]
                inputs = {"input_ids": torch.tensor([[[*first, *option]]])}
                if segments:
                    inputs["token_type_ids"] = torch.tensor([[[0] * len(first) + [1] * len(option)]])
                found = model(**inputs).logits[0, 0]
                torch.testing.assert_close(scores.choice_logits[row, choice], found, rtol=1e-4, atol=1e-5)
            assert scores.choice_logits[row, len(example["option_ids"]) :].isneginf().all()
        else:
            inputs = {"input_ids": torch.tensor([example["input_ids"]])}
            if segments:
                inputs["token_type_ids"] = torch.tensor([example["segment_ids"]])
            found = model(**inputs).logits[0][example["choice_ids"]]
            torch.testing.assert_close(scores.choice_logits[row], found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_batch_padding_and_order_change_nothing(family, kind):
    model, (encoded, pad) = mixture(family, kind), examples(family, kind)
    whole, _, feu, mass = score_all(model, encoded, pad, 12)
    single, _, own, _ = score_all(model, encoded[::-1], pad, 1)
    finite = torch.from_numpy(whole).isfinite().numpy()
    assert abs(single[::-1][finite] - whole[finite]).max() < 2e-4
    assert abs(own[::-1] - feu).max() < 1e-5
    assert mass is None


def test_only_sequences_that_there_are_are_run():
    model, (encoded, pad) = mixture(), examples()
    scores = score(model, collate(encoded, pad, "right"))
    choices = [len(example["option_ids"]) for example in encoded]
    assert len(set(choices)) > 1
    assert scores.routing[0].first.shape[0] == sum(choices)
    assert scores.item.tolist() == [row for row, number in enumerate(choices) for _ in range(number)]


@pytest.mark.parametrize("reduction", ["mass", "top1", "vector"])
def test_feu_is_the_mean_over_choices_of_the_mean_over_their_own_tokens(reduction):
    model, (encoded, pad) = mixture(), examples()
    scores = score(model, collate(encoded, pad, "right"))
    found = functional_uncertainty(scores.routing, scores.routing_mask, reduction, item=scores.item)
    for row, example in enumerate(encoded):
        of_choices = []
        for option in example["option_ids"]:
            one = {"input_ids": example["input_ids"], "option_ids": [option], "answer": 0}
            routing = score(model, collate([one], pad, "right")).routing
            kept = torch.stack([layer.kept[0] for layer in routing])  # (layer, token, expert)
            values = {"mass": kept.sum(-1), "top1": kept.amax(-1), "vector": kept}[reduction]
            of_choices.append(values.mean(dim=0).mean(dim=0))
        torch.testing.assert_close(found[row], torch.stack(of_choices).mean(dim=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["multiple_choice", "classification"])
def test_an_effective_batch_has_the_gradient_of_its_parts(kind, tmp_path):
    """Eq. 11 with every term but the balance, two questions at a time or one, in float64."""
    encoded, pad = examples(kind=kind)
    objective = Objective(calibration_weight=1.0)

    def gradient(size):
        model = mixture(kind=kind).double()
        for start in range(0, len(encoded), size):
            part = encoded[start : start + size]
            loss = uq4ct_loss(model, collate(part, pad, "right"), objective)
            (loss.loss * len(part) / len(encoded)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    torch.testing.assert_close(gradient(4), gradient(1), rtol=1e-8, atol=1e-10)


def test_a_filler_weighs_nothing_in_the_balance_either():
    model, (encoded, pad) = mixture(), examples(number=4)
    scores = score(model, collate(encoded, pad, "right"))
    alone = score(model, collate(encoded[:3], pad, "right"))
    objective = Objective(balance_weight=1.0)
    real = torch.tensor([True, True, True, False])
    answer = torch.zeros(4, dtype=torch.long)
    found = objective.terms(*scores[:2], answer, *scores[2:4], real, item=scores.item).balance
    expected = objective.terms(*alone[:2], answer[:3], *alone[2:4], item=alone.item).balance
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_vocabulary_loss_has_no_meaning():
    model, (encoded, pad) = mixture(), examples()
    with pytest.raises(ValueError, match="an encoder's head scores choices alone"):
        uq4ct_loss(model, collate(encoded, pad, "right"), Objective(answer_loss="vocabulary"))


def test_padding_before_the_text_is_refused_and_the_trainer_pads_behind_it(tmp_path):
    model, (encoded, pad) = mixture(), examples()
    with pytest.raises(ValueError, match="reads the first token"):
        score(model, collate(encoded, pad))
    assert padding_side_of(model) == "right"
    trainer = CalibratedTrainer(model, train_dataset=encoded, pad_token_id=pad)
    batch = trainer.data_collator(encoded)
    assert batch["attention_mask"][..., 0].all()


def test_examples_of_the_other_head_are_refused():
    encoded, pad = examples(kind="classification")
    with pytest.raises(ValueError, match="a multiple_choice head needs examples with option_ids"):
        score(encoder("bert"), collate(encoded, pad, "right"))
    encoded, pad = examples()
    with pytest.raises(ValueError, match="a classification head needs examples with choice_ids"):
        score(encoder("bert", "classification"), collate(encoded, pad, "right"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_sequence_that_is_allowed_can_be_scored(family):
    model, pad = encoder(family, "classification"), tokenizer(FAMILIES[family][2]).pad_token_id
    limit = context_length(model)
    assert limit == 48 - (pad + 1 if FAMILIES[family][2] == "roberta" else 0)
    example = {"input_ids": [5] * limit, "choice_ids": [0, 1, 2], "answer": 0}
    short = {"input_ids": [5] * 4, "choice_ids": [0, 1, 2], "answer": 0}
    assert score_all(model, [example, short], pad, 2)[0].shape == (2, 1, 3)
    with pytest.raises(UserError, match=f"{limit + 1} tokens, but the model's context is {limit}"):
        score_all(model, [{**example, "input_ids": [5] * (limit + 1)}], pad, 1)


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "roberta"])
def test_dropout_at_test_belongs_to_the_question_and_not_to_its_batch(family):
    model, (encoded, pad) = lora(family, lora_dropout=0.3), examples(family)
    with adapter_dropout(model, sample=1):
        whole = score_all(model, encoded, pad, 12)[0]
        single = score_all(model, encoded[::-1], pad, 1)[0][::-1]
    finite = torch.from_numpy(whole).isfinite().numpy()
    assert abs(single[finite] - whole[finite]).max() < 2e-4
    assert abs(score_all(model, encoded, pad, 12)[0][finite] - whole[finite]).max() > 1e-3


def test_dropout_on_deberta_s_positions_is_refused():
    base = encoder("deberta-v2")
    model = get_peft_model(base, LoraConfig(r=2, lora_dropout=0.3, target_modules=["query_proj"])).eval()
    encoded, pad = examples("deberta-v2")
    with adapter_dropout(model, sample=1), pytest.raises(UserError, match="DeBERTa's relative positions"):
        score_all(model, encoded, pad, 12)


@pytest.mark.parametrize("kind", ["multiple_choice", "classification"])
@pytest.mark.parametrize("family", ["bert", "deberta-v2"])
def test_laplace_s_jacobian_is_autograd_s_on_ragged_questions(family, kind):
    model, (encoded, pad) = lora(family, kind).double(), examples(family, kind, number=5)
    weights = lora_weights(model)
    batch = collate(encoded, pad, "right")
    at = Linearised(model, weights, batch)
    gradients = at.choice_gradients()
    for linear in weights.values():
        linear.weight.requires_grad_(True)
    logits = score(model, batch).choice_logits
    for number, (name, inputs) in enumerate(zip(weights, at.inputs, strict=True)):
        found = torch.stack([of_choice[number].mT @ inputs for of_choice in gradients], dim=1)
        for item in range(len(encoded)):
            for choice in range(logits.shape[1]):
                if batch["choice_mask"][item, choice]:
                    (expected,) = torch.autograd.grad(logits[item, choice], weights[name].weight, retain_graph=True)
                    torch.testing.assert_close(found[item, choice], expected, rtol=1e-6, atol=1e-9)
                else:
                    assert (found[item, choice] == 0).all()


def test_all_rows_of_a_question_meet_the_same_draw_of_blob():
    torch.manual_seed(0)
    layer = GaussianLinear(torch.nn.Linear(6, 3, bias=False), 0.5).train()
    x = torch.randn(2, 4, 6)
    rows = torch.cat([x[:1], x[:1], x[1:], x[:1]])
    layer.item = torch.tensor([0, 0, 1, 1])
    y = layer(rows)
    assert torch.equal(y[0], y[1])  # the same text in two rows of one question
    assert not torch.allclose(y[0], y[3])  # and in another question
