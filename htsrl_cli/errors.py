"""Everything htsrl raises on purpose.

HtsrlError
├── UsageError            the user's mistake: one line, exit code 2
│   ├── ConfigError       a key, its value, and the remedy
│   └── CheckpointError   a file that cannot be read or does not fit
└── RunError              a failure during a run: exit code 1
    ├── WorkerError       a worker died, raised or hung
    └── NonFiniteError    a loss or gradient is NaN or infinite
"""


class HtsrlError(Exception):
    """Base of all errors that htsrl raises on purpose; `exit_code` is what the CLI returns."""

    exit_code = 1


class UsageError(HtsrlError):
    """The user's mistake. The message is one line that says what to do."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key has a value that cannot be used.

    Args:
        key: dotted name of the key, as typed on the command line.
        value: the offending value.
        remedy: what is wrong and what to do, in one sentence without a full stop.
    """

    def __init__(self, key: str, value: object, remedy: str) -> None:
        super().__init__(f"{key}={value}: {' '.join(remedy.split())}")
        self.key = key
        self.value = value
        self.remedy = remedy

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[str, object, str]]:
        return type(self), (self.key, self.value, self.remedy)


class CheckpointError(UsageError):
    """A checkpoint is missing, damaged, or belongs to another environment."""


class RunError(HtsrlError):
    """A failure during a run."""


class WorkerError(RunError):
    """A worker died, raised or hung; the message holds its name and what is known of it."""


class NonFiniteError(RunError):
    """A loss or gradient is NaN or infinite; the message names the tensor."""
