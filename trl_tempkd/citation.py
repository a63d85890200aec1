# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The papers that the card of a distilled model cites: those of what the run has used, as its functions name them."""

import re
from typing import Any, NamedTuple

from .divergences import DIVERGENCES
from .extensions import source_in, source_of
from .objectives import OBJECTIVES
from .teachers.several_options import TeacherSpec
from .temperature_rules import TEMPERATURE_RULES


class Paper(NamedTuple):
    """A paper as a list of references has it; whoever else has written it are `others`."""

    author: str
    title: str
    year: int


# By their numbers on arXiv
PAPERS = {
    "1503.02531": Paper("Hinton, Geoffrey", "Distilling the Knowledge in a Neural Network", 2015),
    "2203.08679": Paper("Zhao, Borui", "Decoupled Knowledge Distillation", 2022),
    "2211.16231": Paper("Li, Zheng", "Curriculum Temperature for Knowledge Distillation", 2022),
    "2306.08543": Paper("Gu, Yuxian", "{MiniLLM}: Knowledge Distillation of Large Language Models", 2023),
    "2306.13649": Paper(
        "Agarwal, Rishabh",
        "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
        2023,
    ),
    "2307.15190": Paper("Wen, Yuqiao", "f-Divergence Minimization for Sequence-Level Knowledge Distillation", 2023),
    "2308.06744": Paper("Kim, Minsoo", "Token-Scaled Logit Distillation", 2023),
    "2402.03898": Paper("Ko, Jongwoo", "{DistiLLM}: Towards Streamlined Distillation for Large Language Models", 2024),
    "2402.12030": Paper(
        "Boizard, Nicolas",
        "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for {LLMs}",
        2024,
    ),
    "2403.01528": Paper("Sun, Shangquan", "Logit Standardization in Knowledge Distillation", 2024),
    "2404.02657": Paper(
        "Wu, Taiqiang",
        "Rethinking {Kullback-Leibler} Divergence in Knowledge Distillation for Large Language Models",
        2024,
    ),
    "2501.16937": Paper("Shing, Makoto", "{TAID}: Temporally Adaptive Interpolated Distillation", 2025),
    "2503.07067": Paper("Ko, Jongwoo", "{DistiLLM-2}: A Contrastive Approach Boosts the Distillation of {LLMs}", 2025),
    "2503.16870": Paper("Anshumann", "Sparse Logit Sampling: Accelerating Knowledge Distillation in {LLMs}", 2025),
    "2503.20083": Paper(
        "Minixhofer, Benjamin",
        "Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching",
        2025,
    ),
    "2505.04560": Paper(
        "Wang, Guanghui",
        "{ABKD}: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation",
        2025,
    ),
    "2505.16297": Paper("Jung", "{ToDi}: Token-wise Distillation via Fine-Grained Divergence Control", 2025),
    "2509.25837": Paper("Kim", "Distillation of Large Language Models via Concrete Score Matching", 2025),
    "2510.11615": Paper("Xie", "{LLM}-Oriented Token-Adaptive Knowledge Distillation", 2025),
    "2601.19897": Paper("Shenfeld", "Self-Distillation Enables Continual Learning", 2026),
    "2603.07079": Paper("Jin", "Entropy-Aware On-Policy Distillation of Language Models", 2026),
    "2604.00223": Paper("Luong", "Diversity-Aware Reverse {Kullback-Leibler} Divergence for {LLM} Distillation", 2026),
    "2605.20357": Paper("", "Consistently Informative Soft-Label Temperature", 2026),
    "2606.00306": Paper(
        "Luong, Hoang-Chau", "Rethinking the Role of Temperature in Large Language Model Distillation", 2026
    ),
}


def credits_of(args: Any) -> list[tuple[str, str]]:
    """
    What a run has used of others, and where that is from.

    Args:
        args ([`KDConfig`]): its configuration.

    Returns:
        `list[tuple[str, str]]`: What, in words, and its source, which may name papers by their numbers on arXiv.
    """
    specs = list(TeacherSpec.read(args).values()) if args.teachers is not None else []
    families: list[dict[str, Any]] = [{**DIVERGENCES, **OBJECTIVES}, dict(TEMPERATURE_RULES)]
    divergences = [args.divergence, *(spec.divergence for spec in specs)]
    found = [("the divergence", families[0][name], name) for name in dict.fromkeys(filter(None, divergences))]
    if args.kd_temperature_rule is not None:
        found.append(("the temperature rule", families[1][args.kd_temperature_rule], args.kd_temperature_rule))
    credits = []
    for kind, function, name in found:
        kind = "the objective" if name in OBJECTIVES else kind
        source = source_in(function)
        own = source_of(function) is not None
        credits.append((f"{kind} `{name}`" + " (of the author's own)" * own, source))
    taus = [args.kd_temperature, args.kd_temperature_final, args.student_kd_temperature, args.teacher_kd_temperature]
    taus += [
        tau
        for spec in specs
        for tau in (spec.kd_temperature, spec.student_kd_temperature, spec.teacher_kd_temperature)
    ]
    if any(tau not in (None, 1) for tau in taus):
        credits.append(("the temperature", "Hinton et al., arXiv 1503.02531"))
        if source_of(found[0][1]) is None:
            credits.append(("its role on either side", "Luong and Chen, arXiv 2606.00306"))
    if args.lmbda or args.lmbda_schedule != "constant":
        credits.append(("training on the student's own text", "Agarwal et al., GKD, arXiv 2306.13649"))
    if args.replay_size or args.lmbda_schedule == "adaptive":
        credits.append(("replay and the adaptive share of that text", "Ko et al., DistiLLM, arXiv 2402.03898"))
    if args.vocabulary_alignment == "uld" or any(spec.vocabulary_alignment == "uld" for spec in specs):
        credits.append(("the comparison by rank", "Boizard et al., arXiv 2402.12030"))
    if args.alm_weight or any(spec.alm_weight for spec in specs):
        credits.append(("the term on likelihoods", "Minixhofer et al., ALM, arXiv 2503.20083"))
    models = [args.teacher_model_name_or_path, *(spec.model for spec in specs)]
    if any(name in ("student", "student_ema") for name in models):
        credits.append(("the student as its own teacher", "Shenfeld et al., SDFT, arXiv 2601.19897"))
    return credits


def bibtex(source: str) -> list[str]:
    """The entries of the papers that a source names."""
    entries = []
    for number in re.findall(r"\d{4}\.\d{5}", source):
        if (paper := PAPERS.get(number)) is None:
            continue
        key = re.sub(r"\W", "", paper.author.split(",")[0].lower()) + f"{paper.year}a{number.replace('.', '')}"
        author = f"{paper.author} and others" if paper.author else "{The authors}"
        entries.append(
            f"@misc{{{key},\n    title         = {{{{{paper.title}}}}},\n    author        = {{{author}}},\n"
            f"    year          = {paper.year},\n    eprint        = {{{number}}},\n    archivePrefix = {{arXiv}},\n}}"
        )
    return entries
