"""EntropyLong: verified long-context training data from a corpus of short documents."""

import warnings

# Dagster's notes to developers on what it may change; our pins decide when that reaches users.
warnings.filterwarnings("ignore", message=r".* is currently in (preview|beta), and may have")
