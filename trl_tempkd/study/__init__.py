# Copyright 2026 The trl_tempkd authors. Licensed under the Apache License, Version 2.0.
"""The study: what looks at students. Nothing of the core imports it."""
