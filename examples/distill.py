# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""
Distil a teacher into a student, started by hand: what `trl-tempkd distill` runs, spread out to be read and changed.

```bash
accelerate launch examples/distill.py --config recipes/tiny/distill.yaml
accelerate launch examples/distill.py --config recipes/tiny/distill.yaml --divergence reverse_kl --kd_temperature 4
accelerate launch --config_file my_zero3.yaml examples/distill.py --config recipes/qwen3/distill.yaml
```

The four dataclasses are those of TRL's `sft.py`, with `KDConfig` in place of `SFTConfig`. Every field of them is an
option of the command line and a key of the recipe; an unknown one is an error.
"""

from trl_tempkd.command_line import usage_errors_on_one_line
from trl_tempkd.commands.distill import main
from trl_tempkd.recipes import training_parser


if __name__ == "__main__":
    parser = training_parser()
    with usage_errors_on_one_line(parser.prog):
        (script_args, training_args, model_args, dataset_args), *_ = parser.parse(launched=True)

        # The place to change what a recipe cannot say, for example another learning rate for a LoRA student:
        #   if model_args.use_peft:
        #       training_args.learning_rate *= 10

        # Loads the data and the models, trains, saves, evaluates. What it does inside is no more than
        #   trainer = TemperatureKDTrainer(
        #       model=model_args.model_name_or_path,
        #       args=training_args,  # names the teacher, the divergence and the temperature
        #       train_dataset=dataset["train"],
        #       eval_dataset=dataset["test"],
        #       peft_config=get_peft_config(model_args),
        #   )
        #   trainer.train()
        #   trainer.save_model(training_args.output_dir)
        main(script_args, training_args, model_args, dataset_args)
