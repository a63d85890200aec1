# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Distillation as a TRL trainer: `SFTTrainer` with another loss. Private names of TRL are imported in compat.py."""

from functools import partial
from typing import Any, ClassVar

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput

from .accumulation import filled
from .argument_checks import check_arguments, check_run, student_faults
from .card import CardTrainer
from .checkpoints import ResumingTrainer
from .compat import ForwardRedirection, disable_dropout_in_model, get_config_model_id, look_up_packages_once
from .config import KDConfig
from .data_checks import prepared as checked
from .errors import UsageError
from .heads import check_head, gathered_head, last_hidden_state
from .job import job
from .job import prepared as written_data
from .logged_steps import AfterStep, LastStep, is_logged
from .meter import Meter
from .objectives import make_loss
from .packing import PackingCheck
from .padding import aligned, right_padded
from .rollouts import CARRIED, CarryingCollator, check_answers, make_rollouts, prepared
from .routers import leave_routers, run_backbone, warn_of_none
from .sharding import shard_own_layers
from .teachers import make_teacher
from .trackers import Trackers
from .vision_data import columns_of, give_images


# What some of the loss's per-token metrics are logged as
_NAMES = {"kd": "kd_loss", "ce": "ce_loss", "agreement": "token_agreement", "aligned": "aligned_share"}


class TemperatureKDTrainer(CardTrainer, ResumingTrainer):
    """
    Trainer for knowledge distillation with any divergence at any temperature.

    A [`~trl.SFTTrainer`] whose loss compares the student's next-token distribution with a teacher's at the same
    positions. Data preparation, collation, packing, PEFT, saving and so on are TRL's; a position counts if its label
    isn't -100. The logits are never built in full: backbone, head and divergence run together, in chunks of tokens.

    Beside the loss, the trainer logs the temperature (of each side where they differ; mean and quantiles where each
    token has its own), the divergence without its rescale (`kd_loss`), the cross-entropy (`ce_loss`), the KL of the
    student from the teacher at temperature 1 (`kl_tau1`, comparable between runs), both entropies (all in nats per
    token), `token_agreement` (share of tokens with the same top choice), `num_tokens` (seen so far) and
    `tokens_per_second`. In training they describe the optimizer step that is logged; in evaluation the whole data set,
    and so does `eval_loss`, each token the same.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Student. A string is loaded as in [`~trl.SFTTrainer`].
        teacher_model (`str` or [`~transformers.PreTrainedModel`], *optional*):
            Teacher, with the student's tokenizer unless `args.vocabulary_alignment` says how another one is compared;
            `"student_base"` is the student without its PEFT adapter, `"student"` the student itself and
            `"student_ema"` an average of the weights that it had. If `None`,
            `args.teacher_model_name_or_path` is used. A cache or a server in `args` needs none.
        args ([`KDConfig`], *optional*):
            Configuration. If `None`, the defaults are used, and a model given by name needs no more.
        kwargs:
            Every other argument of [`~trl.SFTTrainer`]: `train_dataset`, `eval_dataset`, `processing_class`,
            `data_collator`, `peft_config`, `quantization_config`, `callbacks`, `optimizers`, `formatting_func`, ...

    Raises:
        `ValueError`: If there is no teacher, if it shares parameters with the student, if the tokenizers differ, or
            if the model or an option isn't supported.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from trl_tempkd import KDConfig, TemperatureKDTrainer

    >>> trainer = TemperatureKDTrainer(
    ...     model="Qwen/Qwen3-0.6B",
    ...     teacher_model="Qwen/Qwen3-4B",
    ...     args=KDConfig("out", divergence="forward_kl", kd_temperature=2.0),
    ...     train_dataset=load_dataset("trl-lib/Capybara", split="train"),
    ... )
    >>> trainer.train()
    ```
    """

    args: KDConfig
    model: PreTrainedModel
    data_collator: Any
    _signature_columns: list[str]

    _tag_names: ClassVar[list[str]] = ["trl", "temperature-kd"]

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        teacher_model: str | PreTrainedModel | None = None,
        args: KDConfig | None = None,
        **kwargs: Any,
    ):
        look_up_packages_once()
        model, teacher_model = check_arguments(model, teacher_model, args, kwargs)
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = KDConfig(f"{model_name.split('/')[-1]}-KD")
        teacher_model = args.teacher_model_name_or_path if teacher_model is None else teacher_model
        check_answers(args, {"train": kwargs.get("train_dataset"), "eval": kwargs.get("eval_dataset")})
        check_run(model, args, kwargs, teacher_model)
        self.teacher = make_teacher(teacher_model, args)
        with student_faults(model, args):
            super().__init__(model, args=args, **kwargs)
        # TRL asks for reentrant checkpointing (PEFT under ZeRO-3) by its old name, and transformers reads the new one
        args.activation_checkpointing_kwargs = args.gradient_checkpointing_kwargs
        self._refuse_unsupported()
        self.trackers = Trackers(self.callback_handler, str(args.output_dir))

        # The count that the loss is divided by must be the number of tokens it sees: the labels after the shift. Both
        # are guessed from the model's class otherwise, and GPT-2's gives the wrong answer.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = True
        if args.disable_dropout:
            disable_dropout_in_model(self.model)
        leave_routers(self.model)
        check_head(self.model)
        shard_own_layers(self.accelerator, self.model)
        self._packing = PackingCheck("student", args)
        self._packing.begin(self.model)

        self.processing = give_images(self)  # what reads the images of rows, if they have any
        self.data_collator = self.teacher.collated(aligned(self.data_collator))
        if args.generates:
            self.data_collator = CarryingCollator(self.data_collator)
        student = partial(getattr, self, "model_wrapped")  # as it is at the time
        self.teacher.bind(student, self._tokenizer, self.accelerator)
        self.teacher_model = self.teacher.model  # as TRL's trainers call it
        args._teacher = self.teacher.name
        parts = (self._tokenizer, self.accelerator, self._get_collator_with_removed_columns(self.data_collator))
        self.rollouts = make_rollouts(student, self.teacher, *parts, args, self.train_dataset, self.processing)

        self._forward_redirection = ForwardRedirection()
        self.step_loss = make_loss(args, self.accelerator, self.teacher.metrics)
        measures = ["loss", *(_NAMES.get(name, name) for name in self.teacher.metrics)]
        measures += ["aux_loss"] * self.aux_loss_enabled
        relative = {_NAMES.get(name, name): _NAMES.get(of, of) for name, of in self.teacher.relative.items()}
        self._meter = Meter(self.accelerator, measures, relative)
        self.add_callback(LastStep())
        self.add_callback(AfterStep(self.teacher.step))

    def _refuse_unsupported(self) -> None:
        parallelism = self.accelerator.parallelism_config
        if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
            raise UsageError("Context and sequence parallelism aren't supported. Use ZeRO-3 or FSDP2 for memory.")

    def train(self, *args, **kwargs):
        with job(self.args, writes=self.args.save_strategy != "no"):
            return super().train(*args, **kwargs)

    def _prepare_dataset(self, dataset, processing_class, *args):
        prepare = partial(self.teacher.prepare, partial(prepared, super()._prepare_dataset, self.chat_template))
        with written_data(dataset):
            return checked(prepare, dataset, processing_class, *args)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*{*self._signature_columns, *self.teacher.columns, *CARRIED, *columns_of(self)}]

    def _is_logged(self) -> bool:
        # The metrics cost a second pair of softmaxes, so they are computed only where they are shown
        return not self.model.training or is_logged(self.args, self.state)

    def _progress(self) -> float:
        return self.state.global_step / max(self.state.max_steps, 1)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        # The batches of one optimizer step. Their completions are generated here, together, and counted afterwards
        self._meter.start()
        self.teacher.keeps = partial(self.rollouts.keeps, self.state.global_step)
        batches, count = super().get_batch_samples(self.teacher.ahead(epoch_iterator), num_batches, device)
        if not batches:  # a stream has ended
            return batches, count
        # Before anything of the step has happened, so that it can be resumed
        save = self._save_before_step if self.state.global_step else None
        self.teacher.wait(batches, save)
        new = self.rollouts(batches, self.state.global_step, self._progress())
        self.teacher.ask(new)
        for batch in new:
            self._meter.see(batch.get("attention_mask", torch.ones_like(batch["labels"])).sum())
        count = count if new is batches else self._get_num_items_in_batch(new, device)
        return filled(new, num_batches), count

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mode = "train" if self.model.training else "eval"
        args = self.args
        inputs = dict(right_padded(inputs))
        labels = inputs.pop("labels")
        self.step_loss.begin(self._progress())

        # Accelerate puts autocast around `model.forward`, which the redirection replaces
        with self.accelerator.autocast():
            teacher_rows = self.teacher.target(inputs)
            student = self.accelerator.unwrap_model(model)
            self._packing.see(inputs, student, partial(self._hidden_states, model, student))
            # Backbone, head and loss run inside the wrapper's forward, so that DDP, FSDP and DeepSpeed see a normal
            # one. Nothing is passed through it, since some wrappers cast what is.
            step = partial(self._forward, student, inputs, labels, teacher_rows, num_items_in_batch)
            loss, aux_loss, sums = self._forward_redirection(model, student, step)

        if mode == "train" and self.accelerator.sync_gradients:  # the last batch of the optimizer step
            self.step_loss.step(self._progress())

        # As in SFTTrainer: `num_items_in_batch` counts the tokens of every rank, and DDP averages the gradients
        if args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        # The aux loss is a mean over a micro-batch, which nobody else divides by the accumulation steps
        if aux_loss is not None:
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + self.router_aux_loss_coef * aux_loss / steps

        if sums is not None:
            # In evaluation, drop the samples that fill up the last batch; ratios don't mind that ranks repeat the sum
            sums = self.accelerator.gather_for_metrics(sums) if mode == "eval" else sums
            self._meter.add(mode, sums.sum(0))

        if not return_outputs:
            return loss
        with torch.no_grad():  # only for `compute_metrics` and `predict`, which ask for the logits
            return loss, model(**inputs)

    def _hidden_states(self, model, student, inputs):
        return self._forward_redirection(model, student, partial(last_hidden_state, student, inputs))

    def _forward(self, student, inputs, labels, teacher_rows, num_items_in_batch):
        # Returns a plain tuple: FSDP2 attaches its hooks to the tensors that it finds in the output
        hidden, aux_loss = run_backbone(student, inputs, aux_loss=self.aux_loss_enabled)
        if aux_loss is None and self.args.router_aux_loss_coef:
            warn_of_none(student, self.args.router_aux_loss_coef)
        targets = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]  # (B, L): position i predicts token i + 1
        with gathered_head(student) as head, self.teacher.head() as teacher_head:
            out = self.step_loss(
                hidden.flatten(0, 1),
                head,
                teacher_rows,
                teacher_head,
                targets,
                num_items_in_batch,
                logged=self._is_logged(),
                training=self.model.training,
                on_policy=self.rollouts.on_policy,
            )
        if out.metrics is None:
            return out.loss, aux_loss, None
        kept = (targets != -100).flatten()
        columns = [kept, out.per_token, *(out.metrics[name] for name in self.teacher.metrics)]
        if aux_loss is not None:
            columns.append(aux_loss.detach() * kept)
        return out.loss, aux_loss, torch.stack([c.to(out.per_token).view_as(targets).sum(1) for c in columns], dim=1)

    def prediction_step(self, model, inputs, *args, **kwargs):
        return super().prediction_step(model, self.rollouts.evaluated(inputs), *args, **kwargs)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        self.step_loss.reset("eval")
        with self._meter.evaluation():  # `tokens_per_second` is about training
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        # `loss` among them: the mean over tokens in place of the mean over batches
        metrics = {**self.step_loss.logs("eval"), **self._meter.means("eval")}
        self.trackers.see("kd", metrics, metric_key_prefix)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def _evaluate(self, *args, **kwargs) -> dict[str, float]:
        metrics = super()._evaluate(*args, **kwargs)  # of all evaluation sets
        self.rollouts.observe(metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training and "loss" in logs:  # the loop's own, on every rank
            own = {*logs}
            seen, per_second = self._meter.speed()
            before = next((entry["num_tokens"] for entry in self.state.log_history[::-1] if "num_tokens" in entry), 0)
            # The loop's own `loss` stays: it is the mean over all steps since the last log
            logs.update({**self._meter.means("train"), "loss": logs["loss"], **self.step_loss.logs("train")})
            self.trackers.see("kd", logs.keys() - own)
            logs["num_tokens"] = before + seen // self.get_tp_size()
            logs["tokens_per_second"] = per_second / self.get_tp_size()
            logs.update(rollouts := self.rollouts.metrics())
            self.trackers.see("rollouts", rollouts)
        super().log(logs, start_time)
        if self.model.training and self.args.log_completions:
            self.rollouts.log_completions(self.state.global_step, self.trackers)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self._meter.reset()
        self.step_loss.reset("train")
