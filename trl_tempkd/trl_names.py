# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The options of TRL's other distillation trainers that `KDConfig` doesn't have, and what stands in their place."""

from collections.abc import Iterable

from .names import did_you_mean


_JSD = (
    "use `divergence='jsd'` with `divergence_kwargs={'beta': ...}`; as in TRL beta 0 is `divergence='forward_kl'` and "
    "beta 1 `divergence='reverse_kl'`"
)
_TAIL = (
    "of a server or a top-k cache the mass of the other tokens always counts as one more token, and a teacher beside "
    "the student has its whole vocabulary"
)
_SERVER = "`teacher_server_url` alone says that a server is asked"
_PROMPTS = "rows are cut at `max_length`, and prompts where the model would have no room for `max_new_tokens` more"
_GROUPS = "each prompt gets one completion, as nothing is compared within a group"
_STALENESS = "completions are generated in the step that trains on them, so there is no queue to set up"
_ULD = (
    "it is for a teacher with another tokenizer (TRL's GOLD), which `vocabulary_alignment` is for here: 'uld' with "
    "`divergence` 'tvd', or 'bytes' or 'shared'; its temperatures are `student_kd_temperature` and "
    "`teacher_kd_temperature`, its weights `kd_ratio`"
)
_SELF = (
    "it is for a student that is its own teacher given more in its prompt (TRL's SDFT and SDPO), and here the teacher "
    "is a model, a cache or a server; `teacher_model_name_or_path='student_base'` is the student without its adapter"
)
_REWARDS = "it is for policy gradients with rewards (TRL's SDPO), and here a divergence is minimised"

# Name -> what to do in its place. Of GKD, Distillation, ServerDistillation, AsyncDistillation, GOLD, IW-OPD, SDFT and
# SDPO in TRL 1.16, and of MiniLLM and SFT before it
TRL_NAMES: dict[str, str] = {
    "beta": _JSD,
    "distillation_alpha": _JSD,
    "distillation_objective": "use `divergence`",
    "distillation_mode": "use `teacher_server_logprobs` for the top k of a server, or a cache of mode topk or sampled",
    "max_completion_length": "use `max_new_tokens`",
    "chat_template_kwargs": "give it as a column of the data, a dict in each row",
    "teacher_model_server_url": "use `teacher_server_url`",
    "teacher_server_urls": "use `teacher_server_url`: there is one teacher",
    "use_teacher_server": _SERVER,
    "request_timeout": "use `teacher_server_timeout`, and `teacher_server_patience` for how long it may be away",
    "teacher_temperature": "use `kd_temperature` for both sides (TRL softens both), `teacher_kd_temperature` for one",
    **dict.fromkeys(("loss_top_k", "teacher_top_k", "distillation_topk"), "use `teacher_server_logprobs`"),
    **dict.fromkeys(("loss_add_tail", "add_tail_bucket", "distillation_add_tail"), _TAIL),
    "reverse_kl_top_1_mode": "reverse KL is computed from all that is known of the teacher, never from one token",
    **dict.fromkeys(("iw_opd_gamma", "iw_opd_epsilon"), "IW-OPD isn't an objective here; see `divergence`"),
    "distillation_is_clip": "completions are trained on in the step that generates them, so nothing is reweighted",
    "distillation_weight": "use `kd_ratio`",
    "max_prompt_length": _PROMPTS,
    **dict.fromkeys(("num_generations", "num_generations_eval"), _GROUPS),
    "steps_per_generation": "completions are generated once per optimizer step; `generation_batch_size` is at a time",
    "num_iterations": "completions are trained on once; `replay_size` keeps them to be trained on again",
    "max_tool_calling_iterations": "no tools are called while completions are generated",
    "vllm_sync_frequency": "the weights are sent to vLLM before each generation",
    "log_completions_steps": "`log_completions` follows `logging_steps`",
    "wandb_log_unique_prompts": "use `log_unique_prompts`",
    "callbacks": "give them to the trainer: `TemperatureKDTrainer(..., callbacks=[...])`",
    "dtype": "use `model_init_kwargs={'dtype': ...}` (a flag of its own on the command line)",
    "token_budget": "use `per_device_train_batch_size`, or `packing` with `max_length`",
    **dict.fromkeys(
        (
            "max_inflight_tasks",
            "max_staleness",
            "queue_maxsize",
            "weight_sync_steps",
            "weight_sync_timeout",
            "heartbeat_stale_after_s",
        ),
        _STALENESS,
    ),
    **dict.fromkeys(
        (
            "teacher_tokenizer_name_or_path",
            "use_uld_loss",
            "uld_token_merge_strategy",
            "use_extended_uld",
            "uld_use_hybrid_loss",
            "uld_hybrid_matched_weight",
            "uld_hybrid_unmatched_weight",
            "uld_crossentropy_weight",
            "uld_distillation_weight",
            "uld_student_temperature",
            "uld_teacher_temperature",
            "uld_skip_student_eos",
            "uld_skip_teacher_eos",
        ),
        _ULD,
    ),
    **dict.fromkeys(
        (
            "teacher_model_kind",
            "teacher_update_rate",
            "teacher_sync_steps",
            "teacher_prompt_template",
            "use_successful_as_teacher",
            "max_reprompt_len",
            "reprompt_template",
            "solution_template",
            "feedback_template",
            "include_environment_feedback",
            "environment_feedback_only_without_solution",
            "remove_thinking_from_demonstration",
            "dont_reprompt_on_self_success",
        ),
        _SELF,
    ),
    "generate_from_teacher": "use `seq_kd`, with which the teacher writes the completions",
    "num_loss_tokens_to_skip": "all tokens of a completion count; set labels of the data to -100 to leave some out",
    **dict.fromkeys(
        (
            "epsilon",
            "epsilon_high",
            "importance_sampling_level",
            "reward_weights",
            "scale_rewards",
            "mask_truncated_completions",
            "success_reward_threshold",
            "diagnostics_warning_interval",
            "diagnostics_flat_tolerance",
        ),
        _REWARDS,
    ),
    **dict.fromkeys(
        ("rkl_advantage", "single_step_decomposition", "length_normalization"),
        "use `divergence='minillm'`; `trl-tempkd divergences` lists its parameters, for `divergence_kwargs`",
    ),
    "max_seq_length": "use `max_length`",
}


def hint_for(name: str, known: Iterable[str]) -> str:
    """What to do about an unknown option: what stands in the place of TRL's of that name, or the closest known one."""
    plain = name.lstrip("-").replace("-", "_")
    return f": {TRL_NAMES[plain]}" if plain in TRL_NAMES else did_you_mean(name, known)
