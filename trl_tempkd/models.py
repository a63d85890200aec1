# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""Names of models -> models: from the Hub, from disk, adapters on their base, or built in."""

from typing import TYPE_CHECKING, Any

from .errors import UsageError, UsageImportError
from .paths import check_model_name, check_path


if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin


def resolve_model(name: str | None, option: str) -> str:
    """
    The name of a model as `from_pretrained` takes it: `tiny:...` is a folder of this package, all else stays.

    Args:
        name (`str` or `None`):
            A built-in model, a folder, a model on the Hub, or as the teacher `student_base`.
        option (`str`):
            The option that it comes from, for the message.
    """
    if not name:
        raise UsageError(f"no model: give --{option}")
    if name.startswith("tiny:"):
        from .tiny import resolve

        return str(resolve(name))
    check_path(name, f"model (--{option})")
    return name


def usable_device(name: str | None, option: str = "device") -> "torch.device":
    """
    The device of a name, or a GPU if there is one. Stops at one that isn't there. Nothing is put on it: a launcher
    that asks would hold memory of a GPU for as long as others train on it.
    """
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        count = torch.get_device_module(device).device_count()
    except RuntimeError as error:  # no such kind
        said = str(error).splitlines()[0]
        raise UsageError(f"`{option}` is {name!r}, which isn't here: {said}. Give cpu, or leave it out.") from error
    if (device.index or 0) >= count:
        raise UsageError(
            f"`{option}` is {name!r}, which isn't here: there are {count} of {device.type}. Give cpu, or leave it out."
        )
    return device


def check_model(name: str, revision: str | None, trust_remote_code: bool, option: str) -> None:
    """Read a model's configuration, so that a wrong name is one line now rather than a traceback from eight ranks."""
    from transformers import AutoConfig

    check_model_name(name, revision, f"--{option}")
    try:
        AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot load the model {name!r} (--{option}): {str(error).splitlines()[0]}") from error


def load_model(name: str, revision: str | None, option: str, **kwargs: Any) -> "PreTrainedModel":
    """
    A causal language model, or an adapter on its base, in evaluation mode.

    Args:
        name, revision (`str`, `str` or `None`):
            What [`resolve_model`] gives, and its revision on the Hub.
        option (`str`):
            The option that it comes from, for the message.
        kwargs:
            Of `from_pretrained`, such as `dtype` and `trust_remote_code`.
    """
    from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
    from safetensors import SafetensorError

    from .compat import find_adapter_config_file

    kwargs = {**kwargs, **({} if revision is None else {"revision": revision})}
    trust = bool(kwargs.get("trust_remote_code"))
    try:
        if not find_adapter_config_file(name, revision=revision):
            return auto_class(name, revision, trust).from_pretrained(name, **kwargs).eval()
        if not sees(name, revision, trust):
            return AutoPeftModelForCausalLM.from_pretrained(name, **kwargs).eval()
        base = PeftConfig.from_pretrained(name, revision=revision).base_model_name_or_path
        own = {key: value for key, value in kwargs.items() if key != "revision"}
        model = auto_class(str(base), None, trust).from_pretrained(base, **own)
        return PeftModel.from_pretrained(model, name, revision=revision).eval()
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot load the model {name!r} (--{option}): {str(error).splitlines()[0]}") from error
    except SafetensorError as error:
        raise UsageError(f"cannot load the model {name!r} (--{option}): {damaged(error)}") from error


def damaged(error: Exception) -> str:
    """What is to be done about weights that can't be read."""
    return f"a file of its weights is damaged ({error}). Copy or download it anew"


def sees(name: str, revision: str | None, trust_remote_code: bool) -> bool:
    """Whether a model reads images, by its configuration, or by that of its base if it is an adapter."""
    from peft import PeftConfig
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig

    from .compat import find_adapter_config_file

    if find_adapter_config_file(name, revision=revision):
        name, revision = str(PeftConfig.from_pretrained(name, revision=revision).base_model_name_or_path), None
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def auto_class(name: str, revision: str | None, trust_remote_code: bool) -> Any:
    """The class of transformers that loads a model, with its tower if it sees."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if sees(name, revision, trust_remote_code) else AutoModelForCausalLM


def load_tokenizer(
    name: str, revision: str | None, model: "PreTrainedModel | None", trust_remote_code: bool
) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model, loaded or not, or of its base where an adapter was saved without one."""
    from transformers import AutoTokenizer

    found = [(name, revision)]
    if model is not None and hasattr(model, "get_base_model"):
        found += [(config.base_model_name_or_path, None) for config in model.peft_config.values()]
    for candidate, its_revision in found:
        try:
            return AutoTokenizer.from_pretrained(candidate, revision=its_revision, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            problem = error
    raise UsageError(f"cannot load a tokenizer for {name!r}: {str(problem).splitlines()[0]}") from problem


def load_processor(
    name: str, revision: str | None, trust_remote_code: bool, what: str
) -> "ProcessorMixin | PreTrainedTokenizerBase":
    """
    The processor of a model that sees, or the tokenizer of one that doesn't.

    Args:
        name, revision (`str`, `str` or `None`):
            Name or folder of the model, and its revision on the Hub.
        trust_remote_code (`bool`):
            Whether to run code that comes with it.
        what (`str`):
            What the model is, for the message.

    Raises:
        [`UsageImportError`]: If the processor needs torchvision, which isn't there.
        [`UsageError`]: If there is none.
    """
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # a torchvision of another build fails in the middle of its own import
        said = " ".join(f"{type(error).__name__}: {error}".split())
        if "torchvision" in said.lower():
            raise UsageImportError(
                f"The processor of the {what} {name!r} needs torchvision, which isn't installed, or not in the build "
                f"of torch: `pip install '.[vision]'` where you installed trl_tempkd from, and with torch for CPUs "
                f"`pip install torchvision "
                f"--index-url https://download.pytorch.org/whl/cpu`. It says: {said[:200]}"
            ) from error
        if isinstance(error, OSError | ValueError | ImportError | KeyError):
            raise UsageError(f"cannot load the processor of the {what} {name!r}: {said[:200]}") from error
        raise
