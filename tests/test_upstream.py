# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""What the trainer relies on inside TRL and transformers. A failure here says what a new version of them has moved."""

import importlib
import inspect
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
import trl
from trl import DistillationConfig, SFTConfig, SFTTrainer
from trl.trainer.base_trainer import _BaseTrainer

from trl_tempkd import KDConfig, compat


def names(function):
    return list(inspect.signature(function).parameters)


def test_trl_version():
    assert trl.__version__.startswith("1.16.")


@pytest.mark.parametrize("name", compat.PRIVATE)
def test_every_private_name_is_there(name):
    module, _, attribute = compat.PRIVATE[name].rpartition(".")
    assert getattr(compat, name) is getattr(importlib.import_module(module), attribute)


# What they are called with
SIGNATURES = {
    "maybe_gather_lm_head_ctx": ["params"],
    "create_model_from_path": ["model_id", "architecture", "kwargs"],
    "get_config_model_id": ["config"],
    "disable_dropout_in_model": ["model"],
    "prepare_deepspeed": ["model", "accelerator"],
    "fsdp2_prepare_model": ["accelerator", "model"],
    "add_hooks": ["model"],
    "remove_hooks": ["model"],
    "common_prefix_length": ["ids", "other_ids"],
    "get_training_chat_template": ["processing_class", "tokenizer"],
    "has_generation_markers": ["chat_template"],
    "print_prompt_completions_sample": [
        "prompts",
        "completions",
        "rewards",
        "advantages",
        "step",
        "num_samples",
        "extra",
    ],
    "get_model_param_count": ["model", "trainable_only"],
    "launch_command": ["args"],
    "load_config_from_file": ["config_file"],
}
METHODS = {
    "ForwardRedirection": {"__call__": ["self", "wrapper_module", "original_module", "method", "args", "kwargs"]},
    "DistributedBackend": {"gather_params": ["self", "params"]},
    "VLLMGeneration": {"generate": ["self", "prompts", "images", "num_generations", "profiler"]},
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_of_private_functions(name):
    assert names(getattr(compat, name)) == SIGNATURES[name]


@pytest.mark.parametrize("name", METHODS)
def test_signatures_of_private_methods(name):
    for method, expected in METHODS[name].items():
        assert names(getattr(getattr(compat, name), method)) == expected


def test_a_name_that_is_not_in_the_list():
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = compat.nope


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (SFTTrainer.compute_loss, ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]),
        (SFTTrainer.prediction_step, ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"]),
        (SFTTrainer.log, ["self", "logs", "start_time"]),
        (
            SFTTrainer._prepare_dataset,
            ["self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"],
        ),
        (SFTTrainer._set_signature_columns_if_needed, ["self"]),
        (trl.pack_dataset, ["dataset", "seq_length", "strategy", "map_kwargs"]),
        (_BaseTrainer.create_model_card, ["self", "model_name", "dataset_name", "tags"]),
        (transformers.Trainer.get_batch_samples, ["self", "epoch_iterator", "num_batches", "device"]),
        (transformers.Trainer._get_num_items_in_batch, ["self", "batch_samples", "device"]),
        (transformers.Trainer._evaluate, ["self", "trial", "ignore_keys_for_eval", "skip_scheduler"]),
        (transformers.Trainer.train, ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"]),
        (
            transformers.Trainer._init_training_state,
            ["self", "max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial"],
        ),
        (transformers.Trainer._finalize_training, ["self", "trial", "num_train_samples", "start_time"]),
        (SFTTrainer._save_checkpoint, ["self", "model", "trial"]),
        (transformers.Trainer._get_output_dir, ["self", "trial"]),
        (transformers.Trainer._push_from_checkpoint, ["self", "checkpoint_folder"]),
        (transformers.Trainer._save_optimizer_and_scheduler, ["self", "output_dir"]),
        (transformers.Trainer._load_optimizer_and_scheduler, ["self", "checkpoint"]),
        (
            transformers.Trainer.evaluation_loop,
            ["self", "dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"],
        ),
    ],
)
def test_signatures_of_methods_that_are_overridden_or_called(function, expected):
    assert names(function) == expected


def test_positional_arguments_of_the_trainer():
    assert names(SFTTrainer.__init__)[1:3] == ["model", "args"]
    assert {"train_dataset", "eval_dataset", "processing_class", "compute_loss_func", "peft_config"} <= set(
        names(SFTTrainer.__init__)
    )


def test_options_of_generation_are_those_of_trl(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDConfig

    def fields(config, start):
        return {name: field.default for name, field in config.__dataclass_fields__.items() if name.startswith(start)}

    assert fields(KDConfig, ("vllm", "use_vllm")) == fields(DistillationConfig, ("vllm", "use_vllm"))
    sampling = ("top_", "min_p", "repetition", "generation_kwargs", "cache_impl", "ds3_", "log_comp", "num_comp")
    assert fields(KDConfig, sampling) == fields(DistillationConfig, sampling)
    for name in ("temperature", "log_unique_prompts"):
        assert fields(KDConfig, name) == fields(DistillationConfig, name)
    # Of GKD the names, but not its defaults: it mixes half of the student's completions in
    assert {"lmbda", "seq_kd", "max_new_tokens"} <= set(GKDConfig.__dataclass_fields__)
    assert fields(KDConfig, ("seq_kd", "max_new")) == fields(GKDConfig, ("seq_kd", "max_new"))


def test_the_data_that_are_prepared_are_told_by_name():
    # Preparation leaves the columns of the rows there, from which their prompts are made
    source = inspect.getsource(SFTTrainer.__init__)
    assert 'args, args.packing, formatting_func, "train"' in source
    source = inspect.getsource(SFTTrainer._prepare_dataset)
    assert [line.strip() for line in source.splitlines() if "remove_columns=" in line and "messages" not in line] == [
        'remove_columns="conversations" if "conversations" in column_names else None,',
        "remove_columns=mask_columns,",
    ]
    assert 'if "prompt" in example:' in source and 'dataset.select_columns(["input_ids", "labels"])' in source


def test_the_optimizer_step_begins_with_its_batches():
    # Completions are generated in `get_batch_samples`, and `_load_optimizer_and_scheduler` comes before the first
    source = inspect.getsource(transformers.Trainer._run_epoch)
    assert source.index("self.get_batch_samples(") < source.index("self.training_step(")
    assert "_load_optimizer_and_scheduler" in inspect.getsource(transformers.Trainer._prepare_for_training)


def test_a_checkpoint_is_written_where_the_output_folder_is_said_to_be():
    source = inspect.getsource(transformers.Trainer._save_checkpoint)
    assert source.count("_get_output_dir(") == 1 and source.count("args.output_dir") == 0
    # The state is the last file, and what follows it is done once the checkpoint has its name
    state, push, rotation = (
        source.index(name) for name in ("save_to_json(", "_push_from_checkpoint(", "rotate_checkp")
    )
    assert state < push < rotation


def test_where_a_training_begins_and_ends():
    # No epoch is begun where the first one is as many as there are, and then nothing has been trained
    source = inspect.getsource(transformers.Trainer._inner_training_loop)
    assert "for epoch in range(epochs_trained, num_train_epochs):" in source and "_initial_global_step" in source
    assert "_total_loss_scalar / max(num_steps_trained, 0.001)" in inspect.getsource(
        transformers.Trainer._finalize_training
    )
    # A stream's epochs have no end, and its place is in `state.epoch`
    assert "num_train_epochs = sys.maxsize" in inspect.getsource(transformers.Trainer.set_initial_training_values)
    source = inspect.getsource(transformers.Trainer._run_epoch)
    assert "self.state.epoch = epoch + (step + 1) / steps_in_epoch" in source
    assert "do_sync_step = (step + 1) % self.args.gradient_accumulation_steps == 0" in source


def test_fsdp2_keeps_its_settings_where_they_are_read():
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard import _fsdp_param_group

    source = inspect.getsource(FSDPModule.set_reshard_after_forward)
    assert "_fsdp_param_groups" in source and "post_forward_mesh_info" in source
    assert "post_forward_mesh_info" in inspect.getsource(_fsdp_param_group.FSDPParamGroup._reshard_after_forward.fget)


def test_attributes_of_a_trainer(make_trainer, prompt_dataset):
    trainer = make_trainer("mixtral", "mixtral", eval_dataset=prompt_dataset)
    assert trainer._is_vlm is False
    assert trainer.aux_loss_enabled is True and trainer.router_aux_loss_coef > 0
    assert trainer._tokenizer is trainer.processing_class
    assert trainer.get_tp_size() == 1
    assert trainer.accelerator.parallelism_config is None and trainer.accelerator.is_fsdp2 is False


def test_what_transformers_counts(make_model, make_config, prompt_dataset, tokenizer):
    # The trainer sets both attributes because transformers guesses them from the class of the model, wrongly for
    # GPT-2. If this fails, the guess has become right and the two lines may go.
    trainer = SFTTrainer(
        make_model("gpt2"), args=make_config(), train_dataset=prompt_dataset, processing_class=tokenizer
    )
    assert trainer._loss_shifts_labels is False
    assert trainer.model_accepts_loss_kwargs is True
    source = inspect.getsource(transformers.Trainer._get_num_items_in_batch)
    assert "_loss_shifts_labels" in source and "model_accepts_loss_kwargs" in source


def test_accelerate_puts_autocast_around_the_forward():
    # ... which the redirection replaces, so that the trainer enters autocast itself
    import accelerate

    assert "model.forward" in inspect.getsource(accelerate.Accelerator.prepare_model)
    assert "nullcontext" in inspect.getsource(transformers.Trainer.autocast_smart_context_manager)


def test_fields_of_the_config():
    assert {"model_init_kwargs", "dataset_kwargs"} <= set(SFTConfig._VALID_DICT_FIELDS)
    fields = SFTConfig.__dataclass_fields__
    assert {"loss_type", "label_smoothing_factor", "use_liger_kernel", "activation_checkpointing"} <= set(fields)
    assert fields["loss_type"].default == "nll"


def test_collator_ignores_the_first_token_of_a_packed_document():
    batch = compat.DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(
        [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4], "seq_lengths": [2, 2]}]
    )
    assert batch["labels"].tolist() == [[-100, 2, -100, 4]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1]]


def test_accelerate_starts_a_single_process_by_a_function():
    from accelerate.commands import launch

    assert names(launch.simple_launcher) == names(launch.prepare_simple_launcher_cmd_env) == ["args"]
    assert "simple_launcher(args)" in inspect.getsource(launch.launch_command)
    assert "prepare_simple_launcher_cmd_env(args)" in inspect.getsource(launch.simple_launcher)


def test_deepspeed_is_not_imported_to_look_for_it(monkeypatch):
    from accelerate.utils import other

    monkeypatch.setattr(other, "is_deepspeed_available", other.is_deepspeed_available)  # as it was, afterwards
    for name in [name for name in sys.modules if name.partition(".")[0] == "deepspeed"]:
        monkeypatch.delitem(sys.modules, name)
    assert inspect.getsource(other).count("is_deepspeed_available()") == 1
    compat.look_up_packages_once()
    model = torch.nn.Linear(1, 1)
    assert other.extract_model_from_parallel(model) is model and "deepspeed" not in sys.modules
    wrapped = type("DeepSpeedEngine", (torch.nn.Module,), {})()
    wrapped.module = model
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(DeepSpeedEngine=type(wrapped)))
    assert other.extract_model_from_parallel(wrapped) is model


def test_a_package_is_looked_up_once(monkeypatch):
    from accelerate.utils import imports

    original = inspect.unwrap(imports._is_package_available)
    monkeypatch.setattr(imports, "_is_package_available", original)  # what is remembered is as it was, afterwards
    assert names(original) == ["pkg_name", "metadata_name"]
    asked, find = [], importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: asked.append(name) or find(name))
    compat.look_up_packages_once()
    compat.look_up_packages_once()  # by the next trainer
    assert imports.is_peft_available() and imports.is_peft_available()
    assert asked == ["peft"]


def test_deepspeed_is_looked_for_in_one_place():
    from transformers.integrations import deepspeed

    assert deepspeed._hf_deepspeed_config_weak_ref is None and not deepspeed.is_deepspeed_zero3_enabled()


def test_names_of_a_parameter_in_a_checkpoint():
    """What the head of a checkpoint is found by."""
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    from trl_tempkd.compat import revert_weight_conversion

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = AutoModelForCausalLM.from_config(GPTNeoXConfig(vocab_size=16, **sizes))
    weight = model.get_output_embeddings().weight
    assert list(revert_weight_conversion(model, {"lm_head.weight": weight})) == ["embed_out.weight"]
