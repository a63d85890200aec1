# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The papers that the card of a distilled model cites."""

import textwrap


PAPER = {
    "title": "Rethinking the Role of Temperature in Large Language Model Distillation",
    "id": "2606.00306",
    # docstyle-ignore
    "citation": textwrap.dedent("""\
        @article{luong2026rethinking,
            title        = {{Rethinking the Role of Temperature in Large Language Model Distillation}},
            author       = {Hoang-Chau Luong and Lingwei Chen},
            year         = 2026,
            eprint       = {arXiv:2606.00306},
        }

        @article{hinton2015distilling,
            title        = {{Distilling the Knowledge in a Neural Network}},
            author       = {Geoffrey Hinton and Oriol Vinyals and Jeff Dean},
            year         = 2015,
            eprint       = {arXiv:1503.02531},
        }"""),
}
