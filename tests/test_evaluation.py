# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Generation, ROUGE-L and the distance to the teacher, against values worked out another way."""

import math

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from tokenizers.processors import TemplateProcessing

from trl_tempkd import kd_loss
from trl_tempkd.heads import Head
from trl_tempkd.prompts import read_rows
from trl_tempkd.study import evaluation, to_teacher
from trl_tempkd.study.evaluation import (
    divergence_to_teacher,
    evaluate_model,
    generate,
    rouge_l,
    sample,
    tokenize,
)


PROMPTS = ["the cat", "a teacher gives soft targets to a student", "warm logits", "what is the capital of the moon"]


class TestRougeL:
    def test_by_hand(self):
        # Longest common subsequence of 3 words: precision 3/3, recall 3/6
        assert rouge_l(["the cat sat"], ["the cat sat on the mat"]) == pytest.approx([100 * 2 / 3])
        # "the ... mat": 2 of 3 words, 2 of 6
        assert rouge_l(["the soft mat"], ["the cat sat on the mat"]) == pytest.approx([100 * 2 * 2 / 9])
        assert rouge_l(["Cats, sitting!"], ["cat sits"]) == [100.0]  # stems, without case and punctuation
        assert rouge_l([""], ["a cat"]) == [0.0]

    def test_best_over_references(self):
        references = ["the dog ran", "the cat sat", "cat"]
        assert rouge_l(["the cat sat"], [references]) == [100.0]
        alone = [rouge_l(["the cat ran away"], [reference])[0] for reference in references]
        assert rouge_l(["the cat ran away"], [references]) == [max(alone)]

    def test_equals_rouge_score(self):
        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        pairs = [(a, b) for a in PROMPTS for b in PROMPTS]
        expected = [100 * scorer.score(b, a)["rougeL"].fmeasure for a, b in pairs]
        assert rouge_l([a for a, _ in pairs], [b for _, b in pairs]) == pytest.approx(expected)

    def test_needs_as_many_references(self):
        with pytest.raises(ValueError, match="got 2 and 1"):
            rouge_l(["a", "b"], ["a"])


class TestGenerate:
    def greedy(self, model, tokenizer, prompts, **kwargs):
        return generate(model, tokenizer, prompts, temperature=0, max_new_tokens=12, progress=False, **kwargs)

    @pytest.mark.parametrize("architecture", ["llama", "gpt2"])
    def test_batched_equals_one_by_one(self, architecture, make_model, tokenizer):
        model = make_model(architecture)
        alone = [self.greedy(model, tokenizer, [prompt])[0] for prompt in PROMPTS]
        assert self.greedy(model, tokenizer, PROMPTS) == alone
        assert self.greedy(model, tokenizer, PROMPTS, batch_size=2) == alone

    def test_equals_argmax_without_cache(self, make_model, tokenizer):
        model = make_model().eval()
        ids = tokenizer(PROMPTS[1])["input_ids"]
        start = len(ids)
        with torch.no_grad():
            while len(ids) < start + 12 and ids[-1] != tokenizer.eos_token_id:
                ids.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
        expected = tokenizer.decode(ids[start:], skip_special_tokens=True)
        assert len(expected) > 3
        assert self.greedy(model, tokenizer, PROMPTS)[1] == expected

    def test_stops_at_eos(self, make_model, tokenizer):
        model = make_model().eval()
        ids = torch.tensor([tokenizer(PROMPTS[0])["input_ids"]])
        tokens = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
        end = tokens[5]  # let one of its own tokens be the end
        model.generation_config.eos_token_id = [end]
        completion = self.greedy(model, tokenizer, [PROMPTS[1], PROMPTS[0]])[1]
        assert completion == tokenizer.decode(tokens[: tokens.index(end)])

    def test_sampling(self, make_model, tokenizer):
        def sample(seed: int) -> list[str]:
            return generate(model, tokenizer, PROMPTS, max_new_tokens=8, seed=seed, progress=False)

        model = make_model().train()
        state = torch.random.get_rng_state()
        first = sample(10)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert model.training
        torch.manual_seed(5)
        assert sample(10) == first
        assert sample(20) != first
        # The model's own settings would make it greedy
        model.generation_config.update(top_k=1, repetition_penalty=1.7, do_sample=True)
        assert sample(10) == first

    def test_without_an_end_token(self, make_model, tokenizer, prompt_dataset):
        model = make_model()
        tokenizer.eos_token = tokenizer.pad_token = model.generation_config.eos_token_id = None
        said = sample(model, tokenizer, PROMPTS, max_new_tokens=4, progress=False)
        assert [(each.length, each.stopped) for each in said] == [(4, False)] * len(PROMPTS)
        whole = tokenizer(prompt_dataset[0]["prompt"] + prompt_dataset[0]["completion"])["input_ids"]
        assert tokenize(prompt_dataset, tokenizer)[0]["input_ids"] == whole

    def test_lengths_and_stops(self, make_model, tokenizer):
        model = make_model()
        ids = tokenizer(PROMPTS[0])["input_ids"]
        said = sample(model, tokenizer, [ids], temperature=0, max_new_tokens=12, progress=False)[0]
        assert (said.length, said.stopped) == (12, False)
        tokens = model.eval().generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
        model.generation_config.eos_token_id = [tokens[5]]
        said = sample(model, tokenizer, [PROMPTS[0]], temperature=0, max_new_tokens=12, progress=False)[0]
        length = tokens.index(tokens[5]) + 1
        assert (said.length, said.stopped) == (length, True)
        # At the last place there is
        said = sample(model, tokenizer, [PROMPTS[0]], temperature=0, max_new_tokens=length, progress=False)[0]
        assert (said.length, said.stopped) == (length, True)
        assert len(generate(model, tokenizer, PROMPTS, max_new_tokens=3, progress=False)) == len(PROMPTS)

    def test_refuses_negative_temperature(self, make_model, tokenizer):
        with pytest.raises(ValueError, match="got -1"):
            generate(make_model(), tokenizer, PROMPTS, temperature=-1)


@pytest.mark.usefixtures("float64")
class TestDivergenceToTeacher:
    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "cohere", "gemma3_text"])
    def test_equals_full_logits(self, architecture, make_model, tokenizer, prompt_dataset):
        student, teacher = make_model(architecture).train(), make_model(architecture, seed=1).train()
        rows = tokenize(prompt_dataset, tokenizer)
        found = divergence_to_teacher(student, teacher, rows, batch_size=3, progress=False)
        assert student.training and teacher.training

        student.eval()
        teacher.eval()
        kl = reverse = ce = student_entropy = teacher_entropy = agreement = count = 0.0
        guesses = []
        for row in rows:  # one by one: no padding
            ids = torch.tensor([row["input_ids"]])
            with torch.no_grad():
                log_q, log_p = (m(ids).logits[0, :-1].double().log_softmax(-1) for m in (student, teacher))
            for at, label in enumerate(row["labels"][1:]):
                if label != -100:
                    kl += (log_p[at].exp() * (log_p[at] - log_q[at])).sum().item()
                    reverse += kd_loss(log_q[at], log_p[at], divergence="reverse_kl").item()
                    ce -= log_q[at, label].item()
                    guesses.append((log_q[at].max().exp().item(), log_q[at].argmax().item() == label))
                    student_entropy -= (log_q[at].exp() * log_q[at]).sum().item()
                    teacher_entropy -= (log_p[at].exp() * log_p[at]).sum().item()
                    agreement += (log_p[at].argmax() == log_q[at].argmax()).item()
                    count += 1
        ece = 0.0
        for bin in range(15):
            inside = [(top, right) for top, right in guesses if bin / 15 < top <= (bin + 1) / 15]
            if inside:
                ece += abs(sum(top for top, _ in inside) - sum(right for _, right in inside)) / count
        assert ece > 0.005
        expected = {
            "tokens": count,
            "kl_tau1": kl / count,
            "reverse_kl_tau1": reverse / count,
            "ce": ce / count,
            "student_entropy": student_entropy / count,
            "teacher_entropy": teacher_entropy / count,
            "agreement": agreement / count,
            "perplexity": math.exp(ce / count),
            "top_1": sum(top for top, _ in guesses) / count,
            "ece": ece,
        }
        assert found == pytest.approx(expected, rel=1e-9)

    def test_equals_what_the_trainer_logs(self, make_trainer, tokenizer, prompt_dataset):
        trainer = make_trainer(eval_dataset=prompt_dataset, per_device_eval_batch_size=3)
        logged = trainer.evaluate()
        rows = tokenize(prompt_dataset, tokenizer)
        found = divergence_to_teacher(trainer.model, trainer.teacher_model, rows, progress=False)
        assert found["kl_tau1"] == pytest.approx(logged["eval_kl_tau1"], rel=1e-9)
        assert found["ce"] == pytest.approx(logged["eval_ce_loss"], rel=1e-9)
        assert divergence_to_teacher(
            trainer.model, trainer.teacher_model, trainer.eval_dataset, progress=False
        ) == pytest.approx(found)

    def test_of_the_teacher_itself_is_zero(self, make_model, tokenizer, prompt_dataset):
        teacher = make_model()
        found = divergence_to_teacher(teacher, teacher, tokenize(prompt_dataset, tokenizer), progress=False)
        assert found["kl_tau1"] == pytest.approx(0, abs=1e-9)
        assert found["agreement"] == 1

    def test_small_chunks_change_nothing(self, make_model, tokenizer, prompt_dataset, monkeypatch):
        student, teacher, rows = make_model(), make_model(seed=1), tokenize(prompt_dataset, tokenizer)
        expected = divergence_to_teacher(student, teacher, rows, progress=False)
        monkeypatch.setattr(to_teacher, "CHUNK_ELEMENTS", 500)
        assert divergence_to_teacher(student, teacher, rows, progress=False) == pytest.approx(expected)

    def test_calibration_bins(self):
        tops = [0.06, 0.1, 0.95, 1.0]
        hidden = torch.tensor([[top, *[(1 - top) / 20] * 20] for top in tops]).log().clamp(min=-1e9)
        labels = torch.tensor([0, 3, 0, 1])
        found = to_teacher.calibration(hidden, Head(torch.eye(21)), labels)
        expected = torch.zeros(3, 15, dtype=torch.float64)
        expected[:, 0] = torch.tensor([1, 0.06, 1])
        expected[:, 1] = torch.tensor([1, 0.1, 0])
        expected[:, 14] = torch.tensor([2, 1.95, 1])
        assert torch.allclose(found, expected)

    def test_needs_labels(self, make_model):
        rows = [{"input_ids": [1, 2], "labels": [-100, -100]}]
        with pytest.raises(ValueError, match="no label"):
            divergence_to_teacher(make_model(), make_model(seed=1), rows, progress=False)


def test_tokenize_as_the_trainer_does(make_trainer, tokenizer, prompt_dataset):
    prepared = make_trainer(max_length=10).train_dataset
    rows = tokenize(prompt_dataset, tokenizer)
    assert any(len(row["input_ids"]) > 10 for row in rows)
    for found, expected in zip(tokenize(prompt_dataset, tokenizer, max_length=10), prepared, strict=True):
        assert found["input_ids"] == list(expected["input_ids"])[:10]
        assert found["labels"] == list(expected["labels"])[:10]
    # Where the completion has its end token already, there is no second one
    ended = [{**row, "completion": row["completion"] + tokenizer.eos_token} for row in prompt_dataset]
    assert tokenize(ended, tokenizer) == rows


class TestEvaluateModel:
    @pytest.fixture
    def evaluate(self, make_model, tokenizer, prompt_dataset):
        model, teacher = make_model(), make_model(seed=1)
        rows = read_rows(prompt_dataset, tokenizer)

        def call(seeds=(10, 20), rows=rows, **kwargs):
            kwargs = {"teacher": teacher, "max_new_tokens": 6, "batch_size": 3, "progress": False, **kwargs}
            return evaluate_model(model, tokenizer, rows, seeds=seeds, **kwargs)

        call.model, call.teacher = model, teacher
        return call

    @pytest.mark.usefixtures("float64")
    def test_content(self, evaluate, tokenizer, prompt_dataset):
        found = evaluate()
        assert [run["seed"] for run in found["runs"]] == [10, 20, None]
        prompts = prompt_dataset["prompt"]
        said = generate(evaluate.model, tokenizer, prompts, max_new_tokens=6, seed=20, batch_size=3, progress=False)
        assert found["runs"][1]["items"]["completion"] == said
        greedy = generate(evaluate.model, tokenizer, prompts, max_new_tokens=6, temperature=0, progress=False)
        assert found["runs"][2]["items"]["completion"] == greedy
        for run in found["runs"]:
            scores, items = run["scores"], run["items"]
            assert items["rouge_l"] == rouge_l(items["completion"], prompt_dataset["completion"])
            for name in ("rouge_l", "self_bleu", "length", "stop_rate"):
                assert scores[name] == pytest.approx(sum(items[name]) / len(prompts))
            assert 0 < scores["distinct_1"] <= scores["distinct_4"] <= 1
        pair = [run["scores"]["rouge_l"] for run in found["runs"][:2]]
        assert found["means"]["rouge_l"] == {
            "mean": pytest.approx(sum(pair) / 2),
            "std": pytest.approx(abs(pair[0] - pair[1]) / 2**0.5),
        }
        expected = divergence_to_teacher(
            evaluate.model, evaluate.teacher, tokenize(prompt_dataset, tokenizer), progress=False
        )
        compared = found["compared"]
        assert {name: compared["scores"][name] for name in expected} == pytest.approx(expected)
        assert {*compared["scores"]} - {*expected} == {"bits_per_byte"}
        for name in ("kl_tau1", "reverse_kl_tau1", "ce", "agreement"):
            weighted = zip(compared["items"][name], compared["items"]["tokens"], strict=True)
            assert sum(value * tokens for value, tokens in weighted) / expected["tokens"] == pytest.approx(
                expected[name]
            )
        assert found["rows"][0] == {"prompt": prompts[0], "references": [prompt_dataset[0]["completion"]]}

    @pytest.mark.usefixtures("float64")
    def test_without_a_teacher(self, evaluate):
        found = evaluate(seeds=(), greedy=False)["compared"]["scores"]
        alone = evaluate(seeds=(), greedy=False, teacher=None)["compared"]["scores"]
        assert set(alone) == {"tokens", "ce", "bits_per_byte", "student_entropy", "perplexity", "top_1", "ece"}
        assert alone == pytest.approx({name: found[name] for name in alone})

    @pytest.mark.usefixtures("float64")
    @pytest.mark.parametrize("kind", ["prompts", "chats", "text"])
    def test_bits_per_byte(self, evaluate, tokenizer, kind, prompt_dataset, chat_dataset, text_dataset):
        dataset = {"prompts": prompt_dataset, "chats": chat_dataset, "text": text_dataset}[kind]
        rows = read_rows(dataset, tokenizer)
        found = evaluate(rows=rows, seeds=(), greedy=False)["compared"]
        texts = {
            "prompts": lambda row: row["completion"],
            "chats": lambda row: row["messages"][-1]["content"],
            "text": lambda row: row["text"],
        }
        bits, sizes = [], [len(texts[kind](row).encode()) for row in dataset]
        for row in tokenize([{**row, "prompt": row["prompt"] or ""} for row in rows], tokenizer):
            log_q = evaluate.model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
            own = [log_q[i - 1, token] for i, token in enumerate(row["labels"]) if i and token != -100]
            bits.append(-sum(own).item() / math.log(2))
        assert found["items"]["bits_per_byte"] == pytest.approx([a / b for a, b in zip(bits, sizes, strict=True)])
        assert found["scores"]["bits_per_byte"] == pytest.approx(sum(bits) / sum(sizes))

    def test_a_completion_that_is_cut_has_no_bits_per_byte(self, evaluate, tokenizer):
        limit = evaluate.model.config.max_position_embeddings
        rows = [
            {"prompt": "the cat", "completion": " sat"},
            {"prompt": "the cat", "completion": " sat on the mat" * limit},
            {"prompt": "the cat " * limit, "completion": " sat"},  # the prompt is cut
        ]
        found = evaluate(rows=read_rows(rows, tokenizer), seeds=(), greedy=False)["compared"]["items"]
        assert [value is None for value in found["bits_per_byte"]] == [False, True, False]
        assert all(value > 0 for value in found["ce"])

    def test_goes_on(self, evaluate, monkeypatch):
        whole, saved = evaluate(), []
        part = evaluate(seeds=(10,), greedy=False, save=lambda results: saved.append(len(results.get("runs", []))))
        assert saved == [0, 1]
        seeds = []
        inner = evaluation.sample
        monkeypatch.setattr(evaluation, "sample", lambda *a, **k: seeds.append(k.get("seed")) or inner(*a, **k))
        monkeypatch.setattr(evaluation, "compare", None)
        assert evaluate(results=part) == whole
        assert seeds == [20, None]

    def test_text_alone_is_only_compared(self, evaluate, tokenizer, text_dataset):
        found = evaluate(rows=read_rows(text_dataset, tokenizer))
        assert found["runs"] == []
        assert found["compared"]["scores"]["tokens"] > 50

    def test_special_tokens_once(self, evaluate, tokenizer, chat_dataset, monkeypatch):
        pair = [("<eos>", tokenizer.eos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=pair)
        assert tokenizer("the cat")["input_ids"][0] == tokenizer.eos_token_id
        given = []
        inner = evaluation.sample
        monkeypatch.setattr(evaluation, "sample", lambda *args, **kw: given.append(args[2]) or inner(*args, **kw))
        evaluate(rows=read_rows(chat_dataset, tokenizer), greedy=False)
        assert tokenizer.eos_token_id not in [row[0] for row in given[0]]  # the chat template has put in its own
        evaluate(rows=read_rows([{"prompt": "the cat"}], tokenizer), greedy=False)
        assert given[-1][0][0] == tokenizer.eos_token_id

    def test_long_prompts_are_cut(self, evaluate, tokenizer, monkeypatch):
        rows = read_rows([{"prompt": "the cat sat on the mat " * 20, "completion": " and"}], tokenizer)
        given = []
        inner = evaluation.sample
        monkeypatch.setattr(evaluation, "sample", lambda *args, **kw: given.append(args[2]) or inner(*args, **kw))
        found = evaluate(rows=rows, greedy=False)
        assert given[0] == [tokenizer(rows[0]["prompt"])["input_ids"][-58:]]  # 64 positions, 6 of them to write in
        assert found["prompts_cut"] == 1
        assert found["compared"]["items"]["tokens"] == [len(tokenizer(" and<eos>")["input_ids"])]
